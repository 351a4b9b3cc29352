"""The contenders. Each is a program of its own, run until SIGTERM, that does the same work:

take a request from BENCH_QUEUE (with BENCH_PREFETCH in flight), POST its body to BENCH_URL, publish a
persistent, confirmed reply to the request's reply_to queue, acknowledge. Broker: BENCH_AMQP_URL.
"""
