"""The load client, `examples/call`, as its users run it."""

import re
import subprocess

from peers import Trouble

CALLS = 10_000
AT_A_TIME = 32

_RESULT = re.compile(
    r"RESULT call ok=(?P<ok>\d+) failed=(?P<failed>\d+) p50_us=(?P<p50>\S+) p99_us=(?P<p99>\S+)"
    r" p999_us=(?P<p999>\S+) codes=(?P<codes>\S+) shares=(?P<shares>\S+)"
)


def _listed(text):
    """The parts of a list; where no call was made, or none was taken, it is a dash."""
    return [] if text == "-" else text.split(",")


class Outcome:
    """What a run came to."""

    def __init__(self, status, output, errors):
        self.text = f"{output}{errors}".strip()
        lines = output.splitlines()
        match = _RESULT.fullmatch(lines[-1]) if lines else None
        if match is None:
            raise Trouble(f"call ended with {status}, without a RESULT:\n{self.text}")
        self.status = status
        self.ok, self.failed = int(match["ok"]), int(match["failed"])
        self.codes = dict(code.split(":") for code in _listed(match["codes"]))
        shares = (each.rsplit("@", 1) for each in _listed(match["shares"]))
        self.shares = {address: float(share) for address, share in shares}
        shares = "/".join(f"{share:.2f}" for share in self.shares.values()) or "-"
        failed = ", ".join(f"{count} {code}" for code, count in self.codes.items() if code != "OK")
        self.brief = f"{self.ok} ok, {failed or '0 failed'}; p50 {match['p50']} p99 {match['p99']} us; shares {shares}"

    def share(self, peer):
        """The fraction of the calls that this peer took."""
        return self.shares.get(peer.address, 0.0)

    def require(self, holds, rule):
        """Ends the step with what was seen unless the rule holds."""
        if not holds:
            raise Trouble(f"{rule}, but:\n{self.text}")

    def flawless(self):
        """All calls were made, and none failed."""
        self.require(
            (self.status, self.ok, self.failed) == (0, CALLS, 0), f"0 of {CALLS} calls may fail"
        )

    def lost_at_most(self, calls, *codes):
        """All calls were made, and none failed but some that a server took with it."""
        only = set(self.codes) <= {"OK", *codes}
        self.require(
            only and self.ok + self.failed == CALLS and self.failed <= calls,
            f"at most {calls} of {CALLS} calls may fail, {' or '.join(codes)}",
        )


class Calls:
    """A run of the client over these peers; as a context it may be disturbed while it goes on."""

    def __init__(self, tools, peers, *options):
        target = "static:" + ",".join(peer.address for peer in peers)
        command = [tools.call, target, "--calls", CALLS, *options]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def going_on(self):
        """A fault that came after the last call would show nothing."""
        if self.process.poll() is not None:
            raise Trouble("the calls were over before the fault")

    def outcome(self):
        """Waits for the end."""
        try:
            output, errors = self.process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            raise Trouble("call did not end") from None
        return Outcome(self.process.returncode, output, errors)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
