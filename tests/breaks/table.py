"""What to break, and the tests that should notice: (promise, file, old text, new text, tests)."""

from typing import NamedTuple


class Break(NamedTuple):
    """A promise that is broken by replacing a text that stands once in a file."""

    promise: str
    file: str
    old: str
    new: str
    tests: str  # arguments of pytest, files below tests/


BREAKS = [
    # --- nothing is lost ---
    Break(
        "acknowledged before the reply is confirmed",
        "worker/pipeline/settle.py",
        "                await reply\n",
        "                pass\n",
        "unit/test_settlement.py integration/test_requests.py integration/test_publisher.py",
    ),
    Break(
        "acknowledged before the dead letter is confirmed",
        "worker/pipeline/settle.py",
        "                await letter\n",
        "                pass\n",
        "unit/test_settlement.py integration/test_requests.py faults/test_broker_faults.py",
    ),
    Break(
        "no dead letter",
        "worker/pipeline/settle.py",
        "if settlement.reason is not None and not request.delivery.oversize:",
        "if False:",
        "integration/test_requests.py integration/test_answers.py",
    ),
    Break(
        "no journal record",
        "worker/pipeline/settle.py",
        "                await self._journal.append(journal_record(settlement))\n",
        "                pass\n",
        "integration/test_replay_history.py -k newer",
    ),
    Break(
        "a nack counts as a confirm",
        "worker/amqp/confirm_channel.py",
        'error = None if taken else QueueFull("the queue is full")',
        "error = None",
        "integration/test_publisher.py integration/test_requests.py faults/test_broker_faults.py",
    ),
    Break(
        "an unroutable reply counts as delivered",
        "worker/pipeline/settle.py",
        "except (Unroutable, PublishRefused) as error:",
        "except PublishRefused as error:",
        "integration/test_requests.py unit/test_replies.py",
    ),
    Break(
        "a reply goes to a queue of the worker's own",
        "worker/pipeline/settle.py",
        "return not self._topology.is_own(reply_to)",
        "return True",
        "integration/test_requests.py unit/test_replies.py integration/test_partitions.py",
    ),
    Break(
        "replies without the request's correlation id",
        "worker/pipeline/settle.py",
        'properties.text("correlation_id") or request.id',
        'properties.text("message_id") or request.id',
        "integration/test_requests.py",
    ),
    # --- the latest wins ---
    Break(
        "no lease",
        "worker/amqp/consumer.py",
        "while lease_clock() - self._lease_renewed_at > self._lease:",
        "while False:",
        "integration/test_subscription_ends.py faults/test_worker_faults.py",
    ),
    Break(
        "no lanes",
        "worker/pipeline/lanes.py",
        "key = object() if lane is None else lane",
        "key = object()",
        "unit/test_lanes.py integration/test_order.py",
    ),
    Break(
        "one lane for all",
        "worker/pipeline/lanes.py",
        "key = object() if lane is None else lane",
        "key = 0",
        "unit/test_lanes.py integration/test_order.py",
    ),
    Break(
        "replays unjudged",
        "worker/pipeline/journey.py",
        "if request.is_replay or request.as_of is not None:",
        "if False:",
        "integration/test_replay_history.py -k newer",
    ),
    Break(
        "x-ott-as-of is ignored",
        "worker/pipeline/journey.py",
        "if request.is_replay or request.as_of is not None:",
        "if request.is_replay:",
        "integration/test_dated_requests.py",
    ),
    Break(
        "a journal that cannot tell lets replays pass",
        "worker/pipeline/replay_guard.py",
        "return _forbidden(doubt) if doubt and request.is_replay else None",
        "return None",
        "integration/test_replay_history.py -k 'journal'",
    ),
    Break(
        "barriers skipped",
        "worker/partitions/router.py",
        "            await self._pass_barrier()\n",
        "            pass\n",
        "integration/test_partitions.py models",
    ),
    Break(
        "a partition by chance",
        "worker/partitions/router.py",
        "return 1 + int.from_bytes(digest.digest()) % partitions",
        "return 1 + time.monotonic_ns() % partitions",
        "unit/test_rendezvous.py integration/test_partitions.py",
    ),
    Break(
        "accounts share their resources",
        "worker/pipeline/request.py",
        "resource = Resource(account, parsed.platform",
        'resource = Resource("", parsed.platform',
        "integration/test_order.py",
    ),
    Break(
        "no single active consumer",
        "worker/broker/topology.py",
        '"x-single-active-consumer": True',
        '"x-single-active-consumer": False',
        "integration/test_topology.py integration/test_order.py",
    ),
    Break(
        "a full queue drops its oldest message",
        "worker/broker/topology.py",
        '"x-overflow": "reject-publish",\n            "x-dead-letter-exchange"',
        '"x-overflow": "drop-head",\n            "x-dead-letter-exchange"',
        "integration/test_topology.py integration/secured/test_definitions.py",
    ),
    # --- an outage is a pause ---
    Break(
        "no retry",
        "worker/pipeline/policy.py",
        "_RETRY = frozenset({408, 425})",
        "_RETRY = frozenset[int]()",
        "unit/test_policy.py integration/test_answers.py",
    ),
    Break(
        "a web page counts as registered",
        "worker/pipeline/policy.py",
        "    if answer.is_page:\n        return Verdict.",
        "    if False:\n        return Verdict.",
        "unit/test_policy.py integration/test_answers.py",
    ),
    Break(
        "Retry-After is ignored",
        "worker/marketing_cloud/answer.py",
        "        retry_after=max((hint for hint in hints if hint is not None), default=None),\n",
        "        retry_after=None,\n",
        "integration/test_answers.py -k hint",
    ),
    Break(
        "a token is never dropped",
        "worker/marketing_cloud/accounts.py",
        "        if held.token is token:\n            held.token = None\n\n    def drop_for_scope",
        "        if held.token is None:\n            held.token = None\n\n    def drop_for_scope",
        "integration/test_accounts.py integration/test_tokens.py",
    ),
    Break(
        "a token is not refreshed ahead",
        "worker/marketing_cloud/accounts.py",
        "if now >= token.refresh_at and now",
        "if now < 0 and now",
        "integration/test_tokens.py",
    ),
    Break(
        "one account's trouble is an outage",
        "worker/marketing_cloud/accounts.py",
        "return not account or account == self._default.id",
        "return True",
        "integration/test_accounts.py integration/test_tokens.py",
    ),
    Break(
        "no gate",
        "worker/pipeline/flow.py",
        "return self.state is FlowState.OPEN or call in self._under_way",
        "return True",
        "unit/test_flow.py integration/test_outages.py",
    ),
    Break(
        "a pause is not obeyed",
        "worker/broker/control_stream.py",
        "before, self.pause = self.pause, pause",
        "before, self.pause, pause = self.pause, None, None",
        "integration/test_pause.py",
    ),
    # --- messages cannot stop each other, or pretend ---
    Break(
        "a publisher's CC gives orders",
        "worker/amqp/stream_reader.py",
        "if message.routing_key != self._key:",
        "if False:",
        "integration/test_status_and_control.py",
    ),
    Break(
        "a body may hold any number of values",
        "worker/contract/json_body.py",
        "MOST_VALUES = 10_000",
        "MOST_VALUES = 10_000_000",
        "unit/test_hostile_bodies.py",
    ),
    Break(
        "duplicate keys are accepted",
        "worker/contract/json_body.py",
        "    if len(document) != len(pairs):\n",
        "    if False:\n",
        "unit/test_hostile_bodies.py unit/test_validation.py",
    ),
    Break(
        "an oversize body is kept",
        "worker/contract/registration.py",
        "    if len(body) > max_bytes:\n",
        "    if False:\n",
        "unit/test_hostile_bodies.py unit/test_validation.py integration/test_requests.py",
    ),
    Break(
        "CC and BCC are copied",
        "worker/pipeline/settle.py",
        'NOT_COPIED = frozenset({"CC", "BCC", *COUNTS})',
        "NOT_COPIED = frozenset(COUNTS)",
        "integration/test_requests.py integration/test_hostile_messages.py",
    ),
    Break(
        "false and 0 count as missing",
        "worker/contract/registration.py",
        'return value is None or value == ""',
        "return not value",
        "unit/test_validation.py",
    ),
    # --- no secret is shown ---
    Break(
        "no masking of what Marketing Cloud says",
        "worker/pipeline/forward.py",
        "answer = masked(answer, SecretMask.of_body(request.delivery.body))",
        "pass",
        "integration/test_answers.py integration/secured/test_no_secret_leaks.py",
    ),
    Break(
        "dead letters are not encrypted",
        "worker/pipeline/settle.py",
        "*self._seals.seal(properties, request.delivery.body)",
        "properties, request.delivery.body",
        "acceptance/test_dead_letters_encrypted.py",
    ),
    # --- the console ---
    Break(
        "no CSRF check",
        "worker/console/security.py",
        "and not self._is_same_origin(request):",
        "and False:",
        "console/test_security.py",
    ),
    Break(
        "any host name is answered",
        "worker/console/security.py",
        "        if is_loopback(name) or name in self._names:\n",
        "        if True:\n",
        "console/test_security.py",
    ),
    Break(
        "a read-only console changes",
        "worker/console/security.py",
        "if is_change and self._settings.console_read_only else None",
        "if False else None",
        "console/test_changes.py console/test_security.py",
    ),
    Break(
        "a page may be framed",
        "worker/console/security.py",
        "frame-ancestors 'none'",
        "frame-ancestors *",
        "console/test_security.py",
    ),
    # --- files ---
    Break(
        "damaged ids are sent",
        "worker/files/damage.py",
        "            elif not (value.isascii() and value.isdigit()):\n",
        "            elif False:\n",
        "unit/test_bulk_readers.py unit/test_bulk_files.py",
    ),
    Break(
        "a formula in the results is not guarded",
        "worker/files/results.py",
        'guard(one_line(v or ""))',
        'one_line(v or "")',
        "unit/test_bulk_results.py acceptance/test_submit.py",
    ),
    Break(
        "masks and placeholders are sent",
        "worker/files/damage.py",
        "        elif _PLACEHOLDER.fullmatch(value):\n",
        "        elif False:\n",
        "unit/test_bulk_files.py",
    ),
    Break(
        "a hidden sheet is read",
        "worker/files/workbook.py",
        "(s for s in sheets if s.is_visible)",
        "iter(sheets)",
        "unit/test_bulk_files.py",
    ),
    Break(
        "a job has as many rows out as it likes",
        "worker/files/outstanding.py",
        "int(rate * (HOLD + self._shortest))",
        "MOST",
        "unit/test_bulk_files.py -k settled",
    ),
    Break(
        "a failed file replaces a foreign one",
        "worker/files/results.py",
        "if path.is_file() and not _is_ours(path):",
        "if False:",
        "acceptance/test_submit_spreadsheets.py -k foreign",
    ),
    Break(
        "the journal's own times are not the truth",
        "worker/broker/journal_index.py",
        'if "asOf" in record else received_at',
        "if False else received_at",
        "unit/test_journal_index.py integration/test_dated_requests.py",
    ),
    Break(
        "a wrong password opens a session",
        "worker/console/session.py",
        "if not hmac.compare_digest(_digest(password), _digest(self._password)):",
        "if False:",
        "console/test_security.py",
    ),
    Break(
        "guesses are not limited",
        "worker/console/session.py",
        "            self._wrong.setdefault(client, deque(maxlen=GUESSES)).append(time.monotonic())\n",
        "            pass\n",
        "console/test_security.py",
    ),
    Break(
        "no jitter",
        "worker/backoff.py",
        "return random.uniform(0, self.ceiling(failures))",
        "return self.ceiling(failures) or random.random()",
        "unit/test_backoff.py",
    ),
    Break(
        "the sandbox is controlled from any web page",
        "worker/sandbox/control.py",
        "        if not _is_own(request.host):\n",
        "        if False:\n",
        "integration/test_sandbox.py",
    ),
]
