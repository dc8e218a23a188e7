"""Puts a server under load: `infinity-jax serve` first, then `python scripts/load_server.py`.

One client sends requests one after the other, then many do at the same time. A share of these is
malformed and must be answered with 4xx. Every image is compared with the one that the single client
got. Prints throughput, latency and the server's memory at every tenth of the requests.
"""

import argparse
import concurrent.futures
import pathlib
import random
import statistics
import time

import httpx

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


def prompt_of(number: int) -> dict[str, object]:
    """The request of a number; there are as many different ones as prompts."""
    subject, colour = SUBJECTS[number % len(SUBJECTS)], COLOURS[number % len(COLOURS)]
    return {'prompt': f'{subject} on a {colour} background', 'seed': number % 12}


def memory_mb(process: int) -> float:
    """Resident memory of a process on this machine, in MB."""
    status = pathlib.Path(f'/proc/{process}/status').read_text()
    return int(status.split('VmRSS:')[1].split()[0]) / 1000


def main() -> None:
    """Runs the load and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--url', default='http://127.0.0.1:8000')
    parser.add_argument('--requests', type=int, default=1000)
    parser.add_argument('--clients', type=int, default=32)
    parser.add_argument('--malformed', type=float, default=0.05, help='share of the requests')
    parser.add_argument('--pid', type=int, help='of the server, to watch its memory')
    args = parser.parse_args()
    http = httpx.Client(
        base_url=args.url, timeout=600, limits=httpx.Limits(max_connections=args.clients)
    )

    def generate(number: int) -> tuple[str, float]:
        start = time.perf_counter()
        while True:
            answer = http.post('/v1/images/generations', json=prompt_of(number))
            if answer.status_code != 429:
                break
            time.sleep(0.05)  # instead of Retry-After: the queue is to stay full
        answer.raise_for_status()
        return answer.json()['data'][0]['b64_json'], time.perf_counter() - start

    def malformed(number: int) -> None:
        answer = http.post(
            '/v1/images/generations',
            content=MALFORMED[number % len(MALFORMED)],
            headers={'Content-Type': 'application/json'},
        )
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
        assert answer.json()['error']['message'], answer.text

    alone = [generate(number) for number in range(12)]
    single = 12 / sum(seconds for _, seconds in alone)
    print(f'one client: {single:.1f} images per second')
    choose = random.Random(0)
    kinds = [choose.random() < args.malformed for _ in range(args.requests)]
    latencies: list[float] = []
    finished = 0
    start = time.perf_counter()

    def request(number: int) -> None:
        nonlocal finished
        if kinds[number]:
            malformed(number)
        else:
            image, seconds = generate(number)
            assert image == alone[number % 12][0], f'request {number} got another image'
            latencies.append(seconds)
        finished += 1
        if args.pid and finished % max(1, args.requests // 10) == 0:
            print(f'after {finished} requests: {memory_mb(args.pid):.0f} MB', flush=True)

    with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
        list(pool.map(request, range(args.requests)))
    rate = len(latencies) / (time.perf_counter() - start)
    cuts = statistics.quantiles(latencies, n=20)
    print(
        f'{args.clients} clients: {rate:.1f} images per second, {rate / single:.1f} times one '
        f"client's; p50 {statistics.median(latencies):.2f} s, p95 {cuts[18]:.2f} s; "
        f'{sum(kinds)} malformed requests answered with 4xx; every image as generated alone'
    )


if __name__ == '__main__':
    main()
