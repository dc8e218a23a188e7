"""Puts a server under load: `infinity-jax serve` first, then `python scripts/load_server.py`.

Windows of one client and of many alternate, so that both see the same machine. Then many clients
send a number of requests, of which a share is malformed and must be answered with 4xx. Every image
is compared with the one that was generated alone. Prints throughput, latency and the server's
memory at every tenth of the requests.
"""

import argparse
import concurrent.futures
import http.client
import json
import pathlib
import random
import statistics
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

MALFORMED = (
    b'',
    b'{"prompt": ',
    b'[]',
    b'{"prompt": ""}',
    b'{"prompt": "a", "n": 100000}',
    b'{"prompt": "a", "size": "50000x50000"}',
    b'{"prompt": "a", "seed": -1}',
    b'{"prompt": 7}',
    b'{"prompt": "a", "checkpoint": "/etc/passwd"}',
    b'\xff\xfe',
    b'{"prompt": "' + b'x' * 100_000 + b'"}',
)
SUBJECTS = ('a red apple', 'a cat', 'a ghost', 'a rocket', 'a house', 'a sailboat')
COLOURS = ('blue', 'green', 'orange', 'red')
DIFFERENT = 12  # requests
PATH = '/v1/images/generations'


class Client:
    """Connections to a server, one per thread."""

    def __init__(self, url: str):
        """url: of the server."""
        self._address = urlsplit(url).netloc
        self._local = threading.local()
        self._alone: list[str] = []

    def first(self) -> None:
        """Generates each of the different images alone: all later ones are compared with these."""
        self._alone = [self._answer(number) for number in range(DIFFERENT)]

    def image(self, number: int) -> float:
        """Generates and compares an image; returns the seconds that it took."""
        start = time.perf_counter()
        image = self._answer(number)
        seconds = time.perf_counter() - start
        assert image == self._alone[number % DIFFERENT], f'request {number} got another image'
        return seconds

    def malformed(self, number: int) -> None:
        """Sends a malformed request."""
        status, answer = self._post(MALFORMED[number % len(MALFORMED)])
        assert 400 <= status < 500 and json.loads(answer)['error']['message'], (status, answer)

    def _answer(self, number: int) -> str:
        subject, colour = SUBJECTS[number % len(SUBJECTS)], COLOURS[number % len(COLOURS)]
        fields = {'prompt': f'{subject} on a {colour} background', 'seed': number % DIFFERENT}
        body = json.dumps(fields).encode()
        status, answer = self._post(body)
        while status == 429:
            time.sleep(0.05)  # instead of Retry-After: the queue is to stay full
            status, answer = self._post(body)
        assert status == 200, (status, answer)
        return json.loads(answer)['data'][0]['b64_json']

    def _post(self, body: bytes) -> tuple[int, bytes]:
        if not hasattr(self._local, 'connection'):
            self._local.connection = http.client.HTTPConnection(self._address, timeout=600)
        connection = self._local.connection
        connection.request('POST', PATH, body, {'Content-Type': 'application/json'})
        answer = connection.getresponse()
        return answer.status, answer.read()


def window(client: Client, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Images per second of so many clients, and the seconds that each image took."""
    start = time.perf_counter()

    def requests(first: int) -> list[float]:
        taken = []
        while time.perf_counter() < start + seconds:
            taken.append(client.image(first + len(taken)))
        return taken

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        taken = [each for listed in pool.map(requests, range(clients)) for each in listed]
    return len(taken) / (time.perf_counter() - start), taken


def alternate(client: Client, clients: int, windows: int, seconds: float) -> None:
    """Windows of one client and of many, one after the other."""
    pairs = []
    for _ in range(windows):
        one, many = window(client, 1, seconds), window(client, clients, seconds)
        pairs.append((one, many))
        print(f'{one[0]:.1f} and {many[0]:.1f} images per second: {many[0] / one[0]:.2f} times')
    for count, results in ((1, [one for one, _ in pairs]), (clients, [many for _, many in pairs])):
        rate = statistics.median(rate for rate, _ in results)
        taken = [each for _, listed in results for each in listed]
        print(f'{count} clients: median {rate:.1f} images per second; {latency(taken)}')
    ratio = statistics.median(many[0] / one[0] for one, many in pairs)
    print(f'{clients} clients to one: median {ratio:.2f} times; every image as generated alone')


def latency(taken: Sequence[float]) -> str:
    """Quantiles as text."""
    cuts = statistics.quantiles(taken, n=20)
    return f'p50 {statistics.median(taken):.3f} s, p95 {cuts[18]:.3f} s'


def soak(client: Client, clients: int, requests: int, share: float, process: int | None) -> None:
    """Many requests, a share of them malformed; prints the memory of a process meanwhile."""
    choose = random.Random(0)
    kinds = [choose.random() < share for _ in range(requests)]
    taken: list[float] = []
    finished = 0

    def request(number: int) -> None:
        nonlocal finished
        if kinds[number]:
            client.malformed(number)
        else:
            taken.append(client.image(number))
        finished += 1
        if process and finished % max(1, requests // 10) == 0:
            print(f'after {finished} requests: {memory_mb(process):.0f} MB', flush=True)

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(request, range(requests)))
    rate = len(taken) / (time.perf_counter() - start)
    print(
        f'{requests} requests of {clients} clients: {rate:.1f} images per second, '
        f'{latency(taken)}; {sum(kinds)} malformed requests answered with 4xx; every image as '
        'generated alone'
    )


def memory_mb(process: int) -> float:
    """Resident memory of a process on this machine, in MB."""
    status = pathlib.Path(f'/proc/{process}/status').read_text()
    return int(status.split('VmRSS:')[1].split()[0]) / 1000


def main() -> None:
    """Runs the load and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--url', default='http://127.0.0.1:8000')
    parser.add_argument('--clients', type=int, default=32)
    parser.add_argument('--windows', type=int, default=3, help='of one client and of all, each')
    parser.add_argument('--seconds', type=float, default=20, help='of a window')
    parser.add_argument('--requests', type=int, default=1000, help='after the windows')
    parser.add_argument('--malformed', type=float, default=0.05, help='share of the requests')
    parser.add_argument('--pid', type=int, help='of the server, to watch its memory')
    args = parser.parse_args()
    client = Client(args.url)
    client.first()
    if args.windows:
        alternate(client, args.clients, args.windows, args.seconds)
    if args.requests:
        soak(client, args.clients, args.requests, args.malformed, args.pid)


if __name__ == '__main__':
    main()
