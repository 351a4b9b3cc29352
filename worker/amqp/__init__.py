"""AMQP: connections of aio-pika, our own consumer and publisher on them, stream readers and queue
browsers."""
