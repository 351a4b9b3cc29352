"""AMQP 0-9-1: connections of aio-pika, our two hot ways beside it, streams, and looks at queues."""
