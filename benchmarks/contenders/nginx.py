"""nginx as the mock upstream, which answers every request alike, and as the floor: `proxy_pass`.

Where nginx is missing, the scripted upstream answers instead and there is no floor.
"""

from __future__ import annotations

import os
import shutil

from benchmarks.contenders.upstream import start_scripted_upstream
from benchmarks.processes import Processes, Running, free_port

MISSING = "nginx is not installed (Debian: apt-get install nginx)"

_ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"mock","choices":'
    '[{"index":0,"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog."},'
    '"finish_reason":"stop"}],"usage":{"prompt_tokens":30,"completion_tokens":10,"total_tokens":40}}'
)

_CONFIG = """\
daemon off;
worker_processes 1;
pid {folder}/{name}.pid;
error_log {folder}/{name}.error.log;
{user}
events {{ worker_connections 1024; }}
http {{
  access_log off;
  default_type application/json;
  keepalive_requests 100000000;
  keepalive_timeout 300s;
  client_body_temp_path {folder}/{name}.body;
  proxy_temp_path {folder}/{name}.proxy;
  fastcgi_temp_path {folder}/{name}.fastcgi;
  uwsgi_temp_path {folder}/{name}.uwsgi;
  scgi_temp_path {folder}/{name}.scgi;
  {upstream}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ {location} }}
  }}
}}
"""

_UPSTREAM = """\
upstream mock {{ server {address}; keepalive 64; keepalive_requests 100000000; }}
"""
_PROXY = 'proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";'


def find_nginx() -> str | None:
    """Debian keeps it where only root's PATH looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def start_mock(processes: Processes) -> Running:
    """An upstream that costs almost nothing."""
    if find_nginx() is None:
        return start_scripted_upstream(processes)
    return _start(processes, "mock", upstream="", location=f"return 200 '{_ANSWER}';")


def start_floor(processes: Processes, upstream: str) -> Running | None:
    """nginx's own `proxy_pass` with kept-alive connections: None where nginx is missing."""
    if find_nginx() is None:
        return None
    address = upstream.removeprefix("http://")
    return _start(processes, "floor", upstream=_UPSTREAM.format(address=address), location=_PROXY)


def _start(processes: Processes, name: str, *, upstream: str, location: str) -> Running:
    nginx = find_nginx()
    assert nginx is not None
    port = free_port()
    config = processes.folder / f"{name}.conf"
    # Its worker would change to a user that cannot enter our folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        _CONFIG.format(
            folder=processes.folder, name=name, port=port, upstream=upstream, location=location, user=user
        )
    )
    return processes.start(
        name, [nginx, "-c", str(config), "-p", str(processes.folder)], url=f"http://127.0.0.1:{port}"
    )
