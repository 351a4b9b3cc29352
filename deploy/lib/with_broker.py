"""Run a program with a RabbitMQ: `with_broker.py PROGRAM ARGUMENT...`. It finds the URL in OTT_AMQP_URL."""

import sys
from collections.abc import Callable, Mapping

from brokers import broker
from foreground import end_in_order, run
from private_broker import BrokerError

from worker.errors import WorkerError


def with_broker(task: Callable[[Mapping[str, str]], int]) -> int:
    """Run the task with the environment that names a broker, and return its exit code; errors in one line."""
    end_in_order()
    try:
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
    sys.exit(with_broker(lambda environment: run(sys.argv[1:], environment)))
