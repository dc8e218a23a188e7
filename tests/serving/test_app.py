import base64
import concurrent.futures
import dataclasses
import io
import json
import socket
import threading
import time

import httpx
import numpy as np
import openai
import pytest
from helpers.serving import LIMITS, running, tiny_engine, until
from PIL import Image

from infinity_jax.serving import server as server_module

GENERATIONS = '/v1/images/generations'


@pytest.fixture(scope='module')
def server():
    with running() as (service, url):
        yield service, url


@pytest.fixture(scope='module')
def client(server):
    return openai.OpenAI(base_url=f'{server[1]}/v1', api_key='none', max_retries=0)


@pytest.fixture(scope='module')
def http(server):
    with httpx.Client(base_url=server[1], timeout=60) as client:
        yield client


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))


def test_the_official_client_generates(client):
    answer = client.images.generate(prompt='a red apple', n=3, extra_body={'seed': 5})
    assert answer.size == '4x6' and answer.output_format == 'png' and len(answer.data) == 3
    images = [pixels(image.b64_json) for image in answer.data]
    assert images[0].shape == (6, 4, 3) and (images[0] != images[1]).any()
    assert [(image.seed, image.index) for image in answer.data] == [(5, 0), (5, 1), (5, 2)]
    alone = client.images.generate(prompt='a red apple', extra_body={'seed': 5}).data[0]
    assert alone.b64_json == answer.data[0].b64_json


def test_png_files_hold_the_settings_that_generate_them_again(client):
    fields = {'negative_prompt': 'green', 'guidance_scale': 2.5, 'temperature': 0.7}
    image = client.images.generate(prompt='ein Schlo\u00df', extra_body=fields).data[0]
    info = Image.open(io.BytesIO(base64.b64decode(image.b64_json))).text
    assert info['prompt'] == 'ein Schlo\u00df' and info['seed'] == str(image.seed)
    in_use = {name: info[name] for name in ('dtype', 'text_dtype', 'weights', 'cache', 'decoder')}
    assert in_use == dict.fromkeys(('dtype', 'text_dtype', 'decoder'), 'float32') | dict.fromkeys(
        ('weights', 'cache'), 'full'
    )
    again = {name: info[name] for name in (*fields, 'seed')}
    second = client.images.generate(prompt=info['prompt'], extra_body=again).data[0]
    assert second.b64_json == image.b64_json


def test_the_official_client_streams_previews_in_order(client):
    events = list(
        client.images.generate(
            prompt='a red apple', n=2, stream=True, partial_images=255, extra_body={'seed': 5}
        )
    )
    for i in range(2):
        own = [event for event in events if event.index == i]
        assert [event.type for event in own] == [
            *['image_generation.partial_image'] * 2,
            'image_generation.completed',
        ]
        assert [event.partial_image_index for event in own[:2]] == [0, 1]
        assert [event.scale for event in own[:2]] == [1, 2] and own[0].scales == 3
    plain = client.images.generate(prompt='a red apple', n=2, extra_body={'seed': 5})
    finished = [event.b64_json for event in events if event.type.endswith('completed')]
    assert finished == [image.b64_json for image in plain.data]


def test_one_preview_is_the_last_but_one_scale(client):
    events = list(client.images.generate(prompt='a cat', stream=True, partial_images=1))
    assert [event.type.split('.')[1] for event in events] == ['partial_image', 'completed']
    assert events[0].scale == 2


def test_requests_at_the_same_time_share_batches_and_get_their_own_images(server, client):
    def image(seed):
        answer = client.images.generate(prompt=f'cat {seed}', extra_body={'seed': seed})
        return answer.data[0].b64_json

    alone = [image(seed) for seed in range(5)]
    batches = server[0].metrics.batch_images
    count = lambda: next(s.value for s in batches.collect()[0].samples if s.name.endswith('count'))
    before = count()
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        assert list(pool.map(image, range(5))) == alone
    assert count() - before < 5


def test_other_formats(client):
    for kind, name in (('jpeg', 'JPEG'), ('webp', 'WEBP')):
        answer = client.images.generate(prompt='a cat', output_format=kind, output_compression=80)
        assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).format == name


def test_models(client):
    assert [model.id for model in client.models.list()] == ['tiny']
    assert client.models.retrieve('tiny').scales == 3
    with pytest.raises(openai.NotFoundError, match='this server has tiny'):
        client.models.retrieve('gpt-image-1')


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({}, 'prompt is None; wanted text'),
        ({'prompt': ' \u2003 '}, 'prompt is empty'),
        ({'prompt': 5}, 'prompt is 5; wanted text'),
        ({'prompt': 'a' * 101}, 'prompt has 101 characters; wanted 100 at most'),
        ({'prompt': 'a\0b'}, 'prompt holds a zero byte'),
        ({'prompt': 'a\ud800'}, 'half of a surrogate pair'),
        ({'prompt': 'a', 'n': 6}, 'n is 6; wanted a whole number from 1 to 5'),
        ({'prompt': 'a', 'n': True}, 'n is True'),
        ({'prompt': 'a', 'seed': -1}, 'seed is -1'),
        ({'prompt': 'a', 'seed': 2**32}, 'seed is 4294967296'),
        ({'prompt': 'a', 'guidance_scale': 'x'}, "guidance_scale is 'x'; wanted a number"),
        ({'prompt': 'a', 'guidance_scale': float('nan')}, 'guidance_scale is nan'),
        ({'prompt': 'a', 'temperature': 0}, 'temperature is 0; wanted a number from 0.01'),
        ({'prompt': 'a', 'size': '1024x1024'}, 'this model generates 6 x 4'),
        ({'prompt': 'a', 'size': 'big'}, "size is 'big'; wanted WIDTHxHEIGHT"),
        ({'prompt': 'a', 'size': '4x6', 'aspect_ratio': '1:1'}, 'give one of them'),
        ({'prompt': 'a', 'response_format': 'url'}, 'this server keeps no images'),
        ({'prompt': 'a', 'output_format': 'gif'}, 'wanted one of png, jpeg, webp'),
        ({'prompt': 'a', 'stream': 'yes'}, 'wanted true or false'),
        ({'prompt': 'a', 'promt': 'b'}, "unknown field 'promt'; did you mean prompt"),
        ({'prompt': 'a', 'checkpoint': '/etc'}, "unknown field 'checkpoint'"),
        ({'prompt': 'a', 'pad': 'x' * 5000}, 'the request has more than 4000 bytes'),
    ],
)
def test_wrong_fields_are_named(http, fields, message):
    body = json.dumps(fields)  # with NaN, which httpx refuses to send
    answer = http.post(GENERATIONS, content=body, headers={'Content-Type': 'application/json'})
    assert 400 <= answer.status_code < 500
    error = answer.json()['error']
    assert message in error['message'] and error['type'] == 'invalid_request_error'


@pytest.mark.parametrize('body', [b'', b'{', b'[]', b'\xff', b'"' + b'[' * 3000, b'null'])
def test_bodies_that_are_no_object(http, body):
    answer = http.post(GENERATIONS, content=body, headers={'Content-Type': 'application/json'})
    assert answer.status_code == 400 and 'the body is' in answer.json()['error']['message']


def test_a_body_of_another_kind_is_refused(http):
    """A form on another site can send text/plain without asking the browser's permission."""
    answer = http.post(
        GENERATIONS, content=b'{"prompt": "a"}', headers={'Content-Type': 'text/plain'}
    )
    assert answer.status_code == 415


def test_pages_of_other_sites_are_refused(http):
    answer = http.post(GENERATIONS, json={'prompt': 'a'}, headers={'Origin': 'http://evil.example'})
    assert answer.status_code == 403
    own = str(http.base_url).rstrip('/')
    assert http.post(GENERATIONS, json={'prompt': 'a'}, headers={'Origin': own}).status_code == 200


def test_paths_and_methods_that_do_not_exist(http):
    assert http.get('/v1/nothing').json()['error']['message'] == 'GET /v1/nothing: Not Found'
    assert http.get(GENERATIONS).status_code == 405


def test_health_metrics_and_page(http):
    http.post(GENERATIONS, json={'prompt': 'a'})
    assert http.get('/health').json() == {'status': 'ok', 'models': ['tiny']}
    text = http.get('/metrics').text
    assert f'infinity_requests_total{{path="{GENERATIONS}",status="200"}}' in text
    assert 'infinity_waiting_images 0.0' in text
    page = http.get('/')
    assert (
        'infinity_jax' in page.text
        and "default-src 'none'" in page.headers['content-security-policy']
    )


def test_a_key_is_asked_of_all_but_page_and_health():
    with running(api_key='secret') as (_, url):
        for path, status in (('/', 200), ('/health', 200), ('/metrics', 401), ('/v1/models', 401)):
            assert httpx.get(url + path).status_code == status
        wrong = openai.OpenAI(base_url=f'{url}/v1', api_key='other', max_retries=0)
        with pytest.raises(openai.AuthenticationError, match='absent or wrong'):
            wrong.images.generate(prompt='a')
        right = openai.OpenAI(base_url=f'{url}/v1', api_key='secret')
        assert [model.id for model in right.models.list()] == ['tiny']


class Slow:
    """The tiny model, slowed down, on one thread."""

    at_once = 1

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, []

    def __getattr__(self, name):
        return getattr(tiny_engine(), name)

    def __call__(self, tasks):
        self.calls.append([task.prompt for task in tasks])
        end = time.monotonic() + self.seconds
        while time.monotonic() < end and not all(task.dropped for task in tasks):
            time.sleep(0.01)
        return tiny_engine()(tasks)


def test_models_share_as_many_threads_as_each_of_them_allows():
    def thread():
        time.sleep(0.02)
        return threading.get_ident()

    slow = Slow(0)
    for engines, threads in (({'tiny': tiny_engine()}, 2), ({'tiny': tiny_engine(), 's': slow}, 1)):
        with running(engines) as (service, _):
            jobs = [service.device.submit(thread) for _ in range(8)]
            assert len({job.result() for job in jobs}) == threads


def post(url, prompt, **fields):
    return httpx.post(url + GENERATIONS, json={'prompt': prompt} | fields, timeout=30)


def test_a_full_queue_is_429_with_the_time_to_wait():
    with running({'slow': Slow(1.5)}) as (service, url):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            first = pool.submit(post, url, 'first')
            time.sleep(0.5)
            fills = pool.submit(post, url, 'fills', n=5)
            until(lambda: service.batchers['slow'].waiting == 5)
            for fields in ({}, {'stream': True}):
                refused = post(url, 'refused', n=2, **fields)
                assert refused.status_code == 429 and int(refused.headers['Retry-After']) >= 1
                assert refused.json()['error']['code'] == 'queue_full'
            assert first.result().status_code == fills.result().status_code == 200


def test_too_many_requests_are_503_and_the_server_is_seen_alive():
    slow = Slow(1)
    with running({'slow': slow}, dataclasses.replace(LIMITS, requests=1)) as (_, url):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, url, 'first')
            until(lambda: slow.calls)
            refused = post(url, 'refused')
            assert refused.status_code == 503 and int(refused.headers['Retry-After']) >= 1
            assert '1 requests are being answered' in refused.json()['error']['message']
            assert httpx.get(url + '/health').status_code == 200
            assert first.result().status_code == 200
        assert post(url, 'next').status_code == 200


def test_a_request_that_takes_too_long_is_504():
    with running({'slow': Slow(5)}, dataclasses.replace(LIMITS, timeout_s=0.2)) as (_, url):
        answer = post(url, 'a')
        assert answer.status_code == 504 and 'no image within 0.2 s' in answer.text
        streamed = post(url, 'a', stream=True)
        assert streamed.status_code == 200 and '"code": "timeout"' in streamed.text


@pytest.mark.parametrize(
    'kind', ['application/json', 'multipart/form-data; boundary=x'], ids=['json', 'form']
)
def test_a_request_that_does_not_arrive_is_408(kind):
    path = GENERATIONS if kind == 'application/json' else '/v1/images/edits'
    with running(limits=dataclasses.replace(LIMITS, timeout_s=0.2)) as (_, url):
        host, port = url.removeprefix('http://').split(':')
        head = f'POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n'
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(f'{head}Content-Length: 100\r\n\r\n-'.encode())
            answer = connection.makefile('rb').read()  # until the server closes the connection
        assert b' 408 ' in answer.splitlines()[0] and b'did not arrive within 0.2 s' in answer


@pytest.mark.parametrize('stream', [False, True])
def test_a_client_that_leaves_is_dropped(stream):
    slow = Slow(20)
    with running({'slow': slow}) as (service, url):
        host, port = url.removeprefix('http://').split(':')
        body = json.dumps({'prompt': 'a', 'stream': stream}).encode()
        head = f'POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n'
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f'{head}Content-Length: {len(body)}\r\n\r\n'.encode() + body)
            until(lambda: slow.calls)
        slow.seconds = 0
        start = time.monotonic()
        assert post(url, 'next').status_code == 200  # its turn comes once the first is dropped
        assert time.monotonic() - start < 10


def test_an_ending_server_finishes_what_it_took_on():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with running({'slow': Slow(1)}) as (service, url):
            job = pool.submit(post, url, 'last')
            time.sleep(0.4)
        assert job.result().status_code == 200
        with pytest.raises(httpx.ConnectError):
            post(url, 'too late')


def test_the_key_in_the_environment(monkeypatch):
    monkeypatch.delenv(server_module.KEY_VARIABLE, raising=False)
    assert server_module.api_key() is None
    monkeypatch.setenv(server_module.KEY_VARIABLE, 'k')
    assert server_module.api_key() == 'k'
    monkeypatch.setenv(server_module.KEY_VARIABLE, 'k\n')  # as read from a file
    assert server_module.api_key() == 'k'
    for key, message in ((' ', 'is empty'), ('Schl\u00fcssel', 'printable ASCII')):
        monkeypatch.setenv(server_module.KEY_VARIABLE, key)
        with pytest.raises(ValueError, match=message):
            server_module.api_key()


def test_an_address_in_use_is_one_line(server):
    port = int(server[1].rpartition(':')[2])
    with pytest.raises(ValueError, match=f'cannot listen on 127.0.0.1:{port}.*--port'):
        server_module.listen('127.0.0.1', port)
