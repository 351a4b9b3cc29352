"""The worker's queues and streams on RabbitMQ."""
