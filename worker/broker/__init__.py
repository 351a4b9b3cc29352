"""RabbitMQ: the only package that imports the AMQP client (aiormq, the engine of aio-pika, and pamqp)."""
