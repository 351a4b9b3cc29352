"""Run a program with a RabbitMQ: `with_broker.py PROGRAM ARGUMENT...`. It finds the URL in OTT_AMQP_URL."""

import sys
from collections.abc import Callable, Mapping

import foreground  # first of all that takes its time
from brokers import broker
from private_broker import BrokerError

from worker.errors import WorkerError


def with_broker(task: Callable[[Mapping[str, str]], int]) -> int:
    """Run the task with the environment that names a broker, and return its exit code; errors in one line."""
    try:
        foreground.end_in_order()
        with broker() as environment:
            return task(environment)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(with_broker(lambda environment: foreground.run(sys.argv[1:], environment)))
