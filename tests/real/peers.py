"""Servers and proxies that are not ours, each a process of its own on a loopback port."""

import contextlib
import ctypes
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from install import SERVERS

PATIENCE = 30.0
"""Seconds that only a hang takes."""

_LIBC = ctypes.CDLL(None)
_given = set()


class Trouble(Exception):
    """What should have come about did not."""


def until(what, holds):
    """Waits for something that must come about soon."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            raise Trouble(f"never came about: {what}")
        time.sleep(0.002)


def free_port():
    """A port that nobody listens on, below those that the kernel gives to clients: none of these takes it."""
    for port in random.sample(range(20_000, 32_768), 1_000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
    raise Trouble("no free port below 32768")


def _die_with_parent():
    prctl_set_pdeathsig = 1
    _LIBC.prctl(prctl_set_pdeathsig, signal.SIGTERM)


class Peer:
    """A process that listens; a context that ends it and all it started."""

    def __init__(self, tools, port=None):
        self.tools = tools
        self.port = port or free_port()
        self.process = None
        self._folder = tempfile.TemporaryDirectory(prefix="equipoise-real-")
        self.folder = Path(self._folder.name)

    def __str__(self):
        return f"{type(self).__name__} on {self.port}"

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def command(self):
        """What is run."""
        raise NotImplementedError

    def environment(self):
        """What it has besides our own environment."""
        return {}

    def start(self):
        """Starts it, anew where it has ended, and waits until it listens."""
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
                # A group of its own: Ctrl-C is for us, and its children end with it.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        until(f"{self} listens", self._listens)

    def _listens(self):
        if self.process.poll() is not None:
            raise Trouble(f"{self} ended with {self.process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        except OSError:
            return False

    def signal(self, number):
        """To the process alone, not to what it started."""
        self.process.send_signal(number)

    def ended(self):
        """Waits until it has ended by itself."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Trouble(f"{self} did not end") from None

    def terminate(self):
        """SIGTERM, and waits until it has drained and is gone."""
        self.signal(signal.SIGTERM)
        self.ended()

    def kill(self):
        """`kill -9`, and waits until it is gone."""
        self.signal(signal.SIGKILL)
        self.ended()

    def log(self):
        """What it has said."""
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self):
        try:
            self.start()
        except BaseException as error:
            tail = self.tail() if isinstance(error, Trouble) else ""
            self._clear()
            raise Trouble(f"{error}\n{tail}") if tail else error
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None and issubclass(kind, Exception):
            print(self.tail(), flush=True)
        self._clear()

    def tail(self):
        """The end of its log, under a headline."""
        lines = self.log().splitlines()[-15:]
        return "\n".join([f"-- the end of the log of {self}", *lines])

    def _clear(self):
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
        self._folder.cleanup()


class Server(Peer):
    """Serves grpc.health.v1, and takes `delay` ms over each answer."""

    def __init__(self, tools, delay=0, port=None):
        super().__init__(tools, port)
        self.delay = delay

    def calls(self):
        """How many calls it has taken, to the hundred, since it was first started."""
        counts = [line.split()[0] for line in self.log().splitlines() if line.endswith(" calls")]
        return int(counts[-1]) if counts else 0

    def taken(self, calls):
        """Waits until it has taken so many calls."""
        until(f"{self} has taken {calls} calls", lambda: self.calls() >= calls)


class Grpcio(Server):
    """Python's grpcio: the C core."""

    def command(self):
        return [self.tools.python, SERVERS / "health.py", self.port, self.delay]


class GrpcJs(Server):
    """grpc-js, on node's own HTTP/2."""

    def command(self):
        return [self.tools.node, SERVERS / "health.js", self.port, self.delay]

    def environment(self):
        return {"NODE_PATH": str(self.tools.node_path)}


class Proxy(Peer):
    """Takes gRPC in plaintext, and balances it over `servers`, by its own defaults wherever it has one, but
    that each sends a call elsewhere where a server takes no connection."""

    def __init__(self, tools, servers):
        super().__init__(tools)
        self.servers = servers

    def file(self, name, text):
        """A file of its own."""
        path = self.folder / name
        path.write_text(text)
        return path

    def reload(self):
        """Puts a new generation in its place, which takes the new calls, as a change of settings does."""
        raise NotImplementedError


class Haproxy(Proxy):
    """HAProxy, master and worker."""

    def command(self):
        servers = [f"  server {s.port} {s.address} proto h2" for s in self.servers]
        config = [
            "global",
            "  nbthread 1",
            "defaults",
            "  mode http",
            "  timeout connect 5s",
            "  timeout client 60s",
            "  timeout server 60s",
            # Where a server takes no connection, another does.
            "  retries 3",
            "  option redispatch 1",
            "frontend front",
            f"  bind {self.address} proto h2",
            "  default_backend back",
            "backend back",
            "  balance roundrobin",
            *servers,
        ]
        return [self.tools.haproxy, "-W", "-db", "-f", self.file("haproxy.cfg", "\n".join([*config, ""]))]

    def reload(self):
        self.signal(signal.SIGUSR2)


class Nginx(Proxy):
    """nginx, master and one worker."""

    def command(self):
        servers = "".join(f"server {s.address};" for s in self.servers)
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};"
            for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        )
        # The worker of a master that is root would be nobody, who may not write into our folder.
        user = "user root;" if os.geteuid() == 0 else ""
        config = f"""
            {user} daemon off; worker_processes 1; pid {self.folder}/pid; error_log stderr warn;
            events {{ worker_connections 1024; }}
            http {{
                access_log off; {temporary}
                upstream back {{ {servers} keepalive 64; }}
                server {{
                    listen {self.address} http2;
                    location / {{ grpc_pass grpc://back; }}
                }}
            }}
        """
        return [self.tools.nginx, "-p", self.folder, "-e", "stderr", "-c", self.file("nginx.conf", config)]

    def reload(self):
        self.signal(signal.SIGHUP)


class Envoy(Proxy):
    """Envoy with a fixed configuration."""

    def __init__(self, tools, servers):
        super().__init__(tools, servers)
        self.admin = free_port()

    def command(self):
        config = self.file("envoy.json", json.dumps(self._config()))
        flags = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warn", "--drain-time-s", "2"]
        return [self.tools.envoy, "-c", config, *flags]

    def _config(self):
        v3 = "type.googleapis.com/envoy.extensions"
        # Where a server takes no connection or refuses the stream, another does: the others' default.
        again = {
            "retry_on": "connect-failure,refused-stream",
            "num_retries": 3,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{v3}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 5,
        }
        manager = {
            "@type": f"{v3}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "front",
            "codec_type": "HTTP2",
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "back", "retry_policy": again}}],
                    }
                ]
            },
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{v3}.filters.http.router.v3.Router"},
                }
            ],
        }
        http2 = {
            "@type": f"{v3}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        back = {
            "name": "back",
            "type": "STATIC",
            # Three at once are its default, and all calls under way may have to go elsewhere.
            "circuit_breakers": {"thresholds": [{"max_retries": 1_000}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            "load_assignment": {
                "cluster_name": "back",
                "endpoints": [{"lb_endpoints": [{"endpoint": _at(s.port)} for s in self.servers]}],
            },
        }
        return {
            "admin": _at(self.admin),
            "static_resources": {
                "listeners": [{"name": "front", **_at(self.port), "filter_chains": [{"filters": filters}]}],
                "clusters": [back],
            },
        }

    def drain(self):
        """Asks its clients to go elsewhere, and waits until it has no more of them and takes none."""
        self._admin("POST", "/drain_listeners?graceful")
        none_left = "http.front.downstream_cx_active: 0"
        until(f"{self} is drained", lambda: not self._listens() and none_left in self._admin("GET", "/stats"))

    def _admin(self, method, path):
        admin = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=PATIENCE)
        with contextlib.closing(admin):
            admin.request(method, path)
            answer = admin.getresponse()
            text = answer.read().decode()
        if answer.status != 200:
            raise Trouble(f"{self} answers {answer.status} to {path}: {text}")
        return text


def _at(port):
    return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}
