"""Registers Messenger pages and LINE channels with Marketing Cloud, from RabbitMQ."""
