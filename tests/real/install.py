"""What must be on the machine, and how it comes there: once, into a folder under cargo's target folder.

Packages of PyPI and npm are pinned by `servers/requirements.txt` and `servers/package-lock.json`, HAProxy and nginx by
the Debian release; the versions in use are printed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SERVERS = HERE / "servers"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
CACHE = TARGET / "real"


class Missing(Exception):
    """Something is not there and could not be got."""


class Tools:
    """Where each program is."""

    def __init__(self):
        CACHE.mkdir(parents=True, exist_ok=True)
        self.call = _client()
        venv = _once("python", ["requirements.txt"], _python)
        self.python = venv / "bin" / "python"
        self.envoy = venv / "bin" / "envoy"
        self.node = _found("node")
        self.node_path = _once("node", ["package.json", "package-lock.json"], _node) / "node_modules"
        self.haproxy, self.nginx = _debian({"haproxy": "haproxy", "nginx": "nginx-light"})

    def versions(self):
        """One line for each implementation."""
        listed = _run([self.python, "-m", "pip", "list", "--format=freeze"])
        grpcio = [line for line in listed.splitlines() if line.startswith("grpcio==")]
        lock = (SERVERS / "package.json").read_text()
        grpc_js = lock.split('"@grpc/grpc-js": "')[1].split('"')[0]
        return [
            *grpcio,
            f"grpc-js {grpc_js} on node {_run([self.node, '--version'])}",
            _run([self.haproxy, "-v"]).splitlines()[0],
            _run([self.nginx, "-v"]),
            "envoy " + _run([self.envoy, "--version"]).split("version:")[1].strip(),
        ]


def _run(command, **options):
    """What the command printed, wherever it printed it."""
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    done = subprocess.run([str(part) for part in command], **merged)
    if done.returncode:
        name = " ".join(str(part) for part in command[:4])
        raise Missing(f"{name} .. ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout.strip()


def _client():
    build = ["cargo", "build", "--release", "--quiet", "--example", "call"]
    _run(build, cwd=ROOT)
    return TARGET / "release" / "examples" / "call"


def _once(name, pins, install):
    """The folder that `install` filled from these files, be it now or on an earlier day."""
    pinned = hashlib.sha256()
    for pin in pins:
        pinned.update((SERVERS / pin).read_bytes())
    folder = CACHE / f"{name}-{pinned.hexdigest()[:12]}"
    done = folder / "complete"
    if not done.exists():
        # What an install that was cut off has left.
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing the packages of {name}", flush=True)
        install(folder)
        done.touch()
    return folder


def _python(folder):
    _run([sys.executable, "-m", "venv", folder])
    pip = [folder / "bin" / "pip", "install", "--quiet", "--only-binary=:all:"]
    _run([*pip, "-r", SERVERS / "requirements.txt"])


def _node(folder):
    folder.mkdir()
    for pin in ["package.json", "package-lock.json"]:
        shutil.copy(SERVERS / pin, folder)
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)


def _found(program):
    # Debian's servers are in sbin, which is not on everybody's path.
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if not found:
        raise Missing(f"{program} is not installed")
    return found


def _debian(packages):
    try:
        return [_found(program) for program in packages]
    except Missing as missing:
        if os.geteuid() != 0:
            raise Missing(f"{missing}, and only root can install it") from None
    print(f"installing {', '.join(packages.values())}", flush=True)
    # In run level 1 Debian starts no service: only what a test starts shall listen.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    _run(["apt-get", "update", "-qq"], env=quiet)
    _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages.values()], env=quiet)
    return [_found(program) for program in packages]
