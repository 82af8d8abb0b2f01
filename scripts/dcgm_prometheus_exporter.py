"""Per-GPU metrics for Prometheus under DCGM's names and labels, from NVML alone, and the host's beside them.

Where `dcgmi` is installed the profiling ratios are DCGM's; else NVML's GPM gives them (Hopper and later). Without a GPU
it serves the host's metrics and says why there are no GPU series. SIGTERM or Ctrl-C ends it with code 0.

Needs a free port (9400). Writes no file: Prometheus comes and reads.
"""

from __future__ import annotations

import argparse
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from serveproof import script
from serveproof.errors import UserError
from serveproof.hardware.key import nvml
from serveproof.telemetry import exposition, gpu_metrics, host_metrics
from serveproof.telemetry.gpu_profiling import Dcgmi, Profiler

LANDING = b"serveproof: metrics are at /metrics\n"


class Exporter:
    """What every scrape reads; one at a time, for GPM's samples are shared."""

    def __init__(self) -> None:
        self.library = nvml()
        self.profilers: dict[str, Profiler] = {}
        self.dcgmi = Dcgmi() if self.library else None
        self.lock = threading.Lock()

    def reason(self) -> str:
        """Why there are no GPU series; '' when there are."""
        if self.library is None:
            return "no NVIDIA driver: NVML could not be loaded"
        return "" if self.library.nvmlDeviceGetCount() else "the NVIDIA driver sees no GPU"

    def page(self) -> bytes:
        """All metrics now."""
        with self.lock:
            families = host_metrics.collect()
            reason = self.reason()
            count = 0
            if not reason:
                count = self.library.nvmlDeviceGetCount()  # type: ignore[union-attr]
                families += gpu_metrics.collect(self.library, self.profilers, self.dcgmi.newest if self.dcgmi else {})
            families += host_metrics.gpu_presence(count, reason)
        return exposition.text(families).encode()


def handler(exporter: Exporter) -> type[BaseHTTPRequestHandler]:
    """The routes: /metrics, and a line at /."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.split("?")[0] not in ("/", "/metrics"):
                self.send_error(404)
                return
            body = LANDING if self.path == "/" else exporter.page()
            self.send_response(200)
            self.send_header("Content-Type", exposition.CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: a scrape every few seconds is no news."""

    return Handler


def work(arguments: argparse.Namespace) -> None:
    exporter = Exporter()
    try:
        server = ThreadingHTTPServer((arguments.host, arguments.port), handler(exporter))
    except OSError as error:
        raise UserError(f"--host {arguments.host} --port {arguments.port}: {error}; choose another --port") from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    script.say(arguments.log, f"metrics at http://{arguments.host}:{server.server_address[1]}/metrics")
    if exporter.reason():
        script.say(arguments.log, f"no GPU series: {exporter.reason()}; the host's metrics are served")
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    if exporter.dcgmi:
        exporter.dcgmi.stop()


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9400, help="9400 is dcgm-exporter's; 0 for any")
    script.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
