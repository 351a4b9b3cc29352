"""One checker for the worker's promises: it is told what was done and seen, and says what does not fit.

I1  every confirmed request ends in a reply, or a reply and a dead letter, or is still queued
I2  nothing unexpected: no reply or dead letter that no request asked for, none with another outcome
I3  acknowledged only after a positive confirm without a return, as the wire shows it
I4  repeated replies stay within the number of faults times the prefetch
I5  the last registration that counts at Marketing Cloud is, for every resource, the last one enqueued; and
    versions are registered one by one, or a redelivered run is repeated whole: after a step back the newest
    one follows again, or is superseded. Where RabbitMQ enqueues a copy of an unconfirmed publish behind newer
    requests, that copy is the last one enqueued, unless `x-ott-as-of` tells that it is older
I6  never two calls in flight for one resource
I7  after healing everything drains, and nothing stays unacknowledged
I8  no planted secret stands in a log, reply, header, metric or journal record
I9  memory, open files and attempts stay bounded
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.faults.load import Reply, Sent, version_of
from worker.sandbox.faults import Call

MEMORY_LIMIT = 250 * 2**20  # bytes
FILES_LIMIT = 2_000
HUNG_UP_WITHIN = 0.05  # seconds


@dataclass
class DeadLetter:
    """One message of the dead queue."""

    request_id: str
    reason: str
    headers: str


@dataclass
class Evidence:
    """What was done and what was seen."""

    calls: Sequence[Call]
    strikes: int
    prefetch: int
    attempts: int
    sent: Sequence[Sent] = ()
    replies: Sequence[Reply] = ()
    dead: Sequence[DeadLetter] = ()
    queued: int = 0
    registered: Mapping[str, int] = field(default_factory=dict)  # resource → version that counts now
    texts: Iterable[tuple[str, str]] = ()  # where, and what stands there
    secrets: Iterable[str] = ()
    peak_memory: int = 0
    peak_files: int = 0
    given_up: frozenset[str] = frozenset()  # requests that the fault itself takes away or dead-letters
    may_miss: frozenset[str] = frozenset()  # requests whose reply the fault itself may take away
    too_early: Sequence[str] = ()  # requests that were acknowledged before their reply was confirmed
    unfinished: frozenset[str] = frozenset()  # resources whose last request was given up


@dataclass
class Findings:
    """What the evidence amounts to; `broken` names the promises that do not hold."""

    operations: int
    lost: int
    unexpected: int
    duplicates: int
    order_violations: (
        int  # resources that hold another version than the last (I5), steps that are neither one
    )
    # up nor a run repeated whole (I5), and calls for one resource that overlap (I6)
    steps_back: int  # all, right or not
    peak_memory: int
    broken: list[str] = field(default_factory=list)


def check(evidence: Evidence) -> Findings:
    """Hold the evidence against the promises."""
    findings = Findings(len(evidence.sent), 0, 0, 0, 0, 0, evidence.peak_memory)
    _nothing_lost(evidence, findings)
    _nothing_unexpected(evidence, findings)
    _few_duplicates(evidence, findings)
    _latest_wins(evidence, findings)
    _one_at_a_time(evidence, findings)
    _no_secret(evidence, findings)
    _bounded(evidence, findings)
    return findings


def _nothing_lost(evidence: Evidence, findings: Findings) -> None:
    answered = {reply.request_id for reply in evidence.replies}
    dead = {letter.request_id for letter in evidence.dead}
    confirmed = [s for s in evidence.sent if s.confirmed and s.id not in evidence.given_up]
    without_reply = [s for s in confirmed if s.id not in answered | evidence.may_miss]
    findings.lost = max(0, len(without_reply) - evidence.queued)
    if findings.lost:
        findings.broken.append(f"I1: {findings.lost} lost, such as {[s.id for s in without_reply[:3]]}")
    no_letter = [s.id for s in confirmed if not s.is_valid and s.id in answered and s.id not in dead]
    if no_letter:
        findings.lost += len(no_letter)
        findings.broken.append(f"I1: answered without a dead letter: {no_letter[:3]}")
    if evidence.too_early:
        some = list(evidence.too_early)[:3]
        findings.broken.append(f"I3: {len(evidence.too_early)} acknowledged too early, such as {some}")
    if evidence.queued:
        findings.broken.append(f"I7: {evidence.queued} still in the queue")


def _nothing_unexpected(evidence: Evidence, findings: Findings) -> None:
    requests = {request.id: request for request in evidence.sent}
    for reply in evidence.replies:
        request = requests.get(reply.request_id)
        wanted = {"registered", "superseded"} if request is not None and request.is_valid else {"rejected"}
        if request is None or (reply.status not in wanted and request.id not in evidence.given_up):
            findings.unexpected += 1
            findings.broken.append(f"I2: reply {reply.status} to {reply.request_id}: {reply.raw[:300]!r}")
    for letter in evidence.dead:
        request = requests.get(letter.request_id)
        if request is None or (request.is_valid and request.id not in evidence.given_up):
            findings.unexpected += 1
            findings.broken.append(f"I2: dead letter {letter.reason} of {letter.request_id}")


def _few_duplicates(evidence: Evidence, findings: Findings) -> None:
    # A reply that its reader was given twice is one reply; a request that was published twice has two.
    messages = {(reply.request_id, reply.message_id) for reply in evidence.replies}
    replies = Counter(request_id for request_id, _ in messages)
    findings.duplicates = sum(replies.values()) - len(replies)
    again = sum(max(0, request.publishes - 1) for request in evidence.sent)
    allowed = evidence.strikes * evidence.prefetch + again
    if findings.duplicates > allowed:
        findings.broken.append(f"I4: {findings.duplicates} repeated replies, {allowed} at most are allowed")


def _latest_wins(evidence: Evidence, findings: Findings) -> None:
    last: dict[str, int] = {}
    for request in evidence.sent:
        if request.resource and request.version and request.confirmed:
            last[request.resource] = max(last.get(request.resource, 0), request.version)
    late = _late_copies(evidence)
    for resource, version in last.items():
        right = {version, *late[resource]}
        if resource not in evidence.unfinished and evidence.registered.get(resource) not in right:
            findings.order_violations += 1
            findings.broken.append(
                f"I5: {resource} holds version {evidence.registered.get(resource)}, the last is {version}"
            )
    _one_by_one(evidence, late, findings)


def _one_by_one(evidence: Evidence, late: Mapping[str, set[int]], findings: Findings) -> None:
    for resource, calls in _by_resource(evidence.calls).items():
        done = [call for call in calls if _is_registered(call)]
        versions = [version_of(call.body) for call in done]
        for version in late.get(resource, set()) & {*versions}:
            del versions[max(place for place, each in enumerate(versions) if each == version)]
        for at, (before, after) in enumerate(pairwise(versions)):
            if after < before:
                findings.steps_back += 1
                if not _is_repeated_whole(evidence, done[0], versions[at + 1 :], before):
                    findings.order_violations += 1
                    findings.broken.append(
                        f"I5: version {after} came after {before}, which did not follow again"
                    )
            elif after > before + 1 and not _is_given_up(evidence, done[0], range(before + 1, after)):
                findings.order_violations += 1
                findings.broken.append(f"I5: version {after} was registered straight after {before}")


def _late_copies(evidence: Evidence) -> dict[str, set[int]]:
    """The versions that RabbitMQ enqueued once more behind newer ones, by resource. When the nodes of a
    cluster have found each other again, it may do so with a publish whose confirm never came."""
    received: dict[str, list[str]] = defaultdict(list)
    for reply in evidence.replies:
        received[reply.request_id].append(reply.received_at)
    late: dict[str, set[int]] = defaultdict(set)
    for request in evidence.sent:
        if request.publishes < 2 or request.is_dated or not request.resource or not request.version:
            continue
        newer = [
            min(received[s.id])
            for s in evidence.sent
            if s.resource == request.resource and (s.version or 0) > request.version and s.id in received
        ]
        copies = received.get(request.id)
        if newer and copies and min(copies) < min(newer) < max(copies):
            late[request.resource].add(request.version)
    return late


def _is_repeated_whole(evidence: Evidence, call: Call, following: Sequence[int], newest: int) -> bool:
    """Whether a step back is a redelivered run that is repeated whole: before anything newer, the newest one
    that had been registered follows again, or is superseded by what does. (That it goes up one by one until
    then is checked apart.)"""
    after = next((version for version in following if version >= newest), None)
    return after is not None and _is_given_up(evidence, call, range(newest, after))


def _is_registered(call: Call) -> bool:
    """Whether the answer told so: half an answer has a whole head, but the sandbox notes no status."""
    return call.fault == "half" or (call.status is not None and call.status < 300)


def _is_given_up(evidence: Evidence, call: Call, versions: range) -> bool:
    superseded = {reply.request_id for reply in evidence.replies if reply.status == "superseded"}
    gone = {(s.resource, s.version) for s in evidence.sent if s.id in evidence.given_up | superseded}
    return all((call.resource_id, version) in gone for version in versions)


def _one_at_a_time(evidence: Evidence, findings: Findings) -> None:
    # That a client hung up is seen a moment later than its next call, which comes on another connection.
    overlapping = [
        after
        for calls in _by_resource(evidence.calls).values()
        for before, after in pairwise(calls)
        if before.finished_at is None or before.finished_at > after.arrived_at + HUNG_UP_WITHIN
    ]
    if overlapping:
        findings.order_violations += len(overlapping)
        findings.broken.append(f"I6: {len(overlapping)} calls overlap, such as number {overlapping[0].seq}")


def _no_secret(evidence: Evidence, findings: Findings) -> None:
    secrets = list(evidence.secrets)
    for where, text in evidence.texts:
        findings.broken += [f"I8: {where} shows a secret" for secret in secrets if secret in text]


def _bounded(evidence: Evidence, findings: Findings) -> None:
    if evidence.peak_memory > MEMORY_LIMIT:
        findings.broken.append(f"I9: memory rose to {evidence.peak_memory >> 20} MiB")
    if evidence.peak_files > FILES_LIMIT:
        findings.broken.append(f"I9: {evidence.peak_files} files were open")
    most = max((reply.attempts for reply in evidence.replies), default=0)
    if most > evidence.attempts:
        findings.broken.append(f"I9: {most} attempts for one request")


def _by_resource(calls: Iterable[Call]) -> dict[str, list[Call]]:
    grouped: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.resource_id is not None:
            grouped[call.resource_id].append(call)
    return grouped
