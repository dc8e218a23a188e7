import base64
import concurrent.futures
import dataclasses
import io
import threading
import zlib

import httpx
import numpy as np
import openai
import pytest
from helpers.serving import LIMITS, running, tiny_engine, until
from PIL import Image

EDITS = '/v1/images/edits'
RECONSTRUCTIONS = '/v1/images/reconstructions'


@pytest.fixture(scope='module')
def http():
    with running() as (_, url), httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope='module')
def client(http):
    return openai.OpenAI(
        base_url=f'{str(http.base_url).rstrip("/")}/v1', api_key='none', max_retries=0
    )


def file(array, kind='PNG'):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def source(size=(12, 8)):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def mask(size=(12, 8)):
    """Transparent, so generated, in the upper half."""
    rgba = np.zeros((*size, 4), np.uint8)
    rgba[size[0] // 2 :, :, 3] = 255
    return rgba


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_the_official_client_edits_what_the_mask_leaves_open(client):
    files = {'image': ('a.png', file(source())), 'mask': ('m.png', file(mask()))}
    answer = client.images.edit(prompt='a cat', n=2, extra_body={'seed': 3}, **files)
    assert answer.size == '8x12'
    for image in answer.data:
        found = pixels(image.b64_json)
        assert (found[6:] == source()[6:]).all() and (found[:5] != source()[:5]).any()
    alone = client.images.edit(prompt='a cat', extra_body={'seed': 3}, **files).data[0]
    assert alone.b64_json == answer.data[0].b64_json


def test_edits_stream_previews_at_the_size_of_the_source(client):
    events = list(
        client.images.edit(
            image=('a.png', file(source())), prompt='a cat', stream=True, partial_images=2
        )
    )
    assert [event.type for event in events] == [
        *['image_edit.partial_image'] * 2,
        'image_edit.completed',
    ]
    assert {pixels(event.b64_json).shape for event in events} == {(12, 8, 3)}


def edit(http, files=None, **fields):
    files = {'image': ('a.png', file(source()))} if files is None else files
    return http.post(EDITS, data={'prompt': 'a cat', 'seed': '1'} | fields, files=files)


def test_strength_and_words(http):
    results = [
        edit(http, **fields).json()['data'][0]['b64_json']
        for fields in ({'strength': '0'}, {'strength': '1'}, {'source_prompt': 'a dog'})
    ]
    assert len(set(results)) == 3
    blank, without = (edit(http, **fields) for fields in ({'source_prompt': ' \n'}, {}))
    assert blank.json()['data'] == without.json()['data']


class SlowEncoder:
    """The tiny model; it encodes no source before it may."""

    def __init__(self):
        self.free = threading.Event()

    def __getattr__(self, name):
        return getattr(tiny_engine(), name)

    def __call__(self, tasks):
        return tiny_engine()(tasks)

    def given(self, read):
        self.free.wait(20)
        return tiny_engine().given(read)


@pytest.mark.parametrize('fields', [{}, {'stream': 'true'}], ids=['json', 'events'])
def test_images_of_too_many_pixels_at_the_same_time_are_429(fields):
    slow, limits = SlowEncoder(), dataclasses.replace(LIMITS, held_pixels=2 * 12 * 8)
    with running({'slow': slow}, limits) as (service, url), httpx.Client(base_url=url) as client:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first = [pool.submit(edit, client, **fields) for _ in range(2)]
            until(lambda: service.room._held == 2 * 12 * 8)
            refused = edit(client, **fields)
            assert refused.status_code == 429 and refused.headers['Retry-After'] == '2'
            assert 'images with 192 pixels are being edited' in refused.json()['error']['message']
            slow.free.set()
            assert [job.result().status_code for job in first] == [200, 200]
        assert edit(client, **fields).status_code == 200
        assert edit(client, strength='much').status_code == 400
        assert service.room._held == 0


def test_a_source_that_takes_too_long_to_encode_is_504():
    slow = SlowEncoder()
    with running({'slow': slow}, dataclasses.replace(LIMITS, timeout_s=0.2)) as (_, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            answer = edit(client)
        slow.free.set()
    assert answer.status_code == 504 and 'no image within 0.2 s' in answer.text


def test_a_source_after_every_number_of_scales(http):
    answer = http.post(RECONSTRUCTIONS, files={'image': ('a.png', file(source()))}).json()
    assert answer['scales'] == 3 and answer['size'] == '8x12'
    assert [each['scales'] for each in answer['data']] == [1, 2, 3]
    assert [each['bits'] for each in answer['data']] == [4, 20, 44]
    images = [pixels(each['b64_json']) for each in answer['data']]
    assert (images[0] != images[2]).any()
    unchanged = edit(http, strength='0').json()['data'][0]['b64_json']
    assert (pixels(unchanged) == images[2]).mean() > 0.9  # another program


def wide_png(width=50_000, height=50_000):
    """The header of a huge PNG, and hardly any pixels."""
    chunk = lambda kind, data: (
        len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
    )
    size = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', size + b'\x08\x02\x00\x00\x00')
        + chunk(b'IDAT', zlib.compress(b'\0' * 100))
        + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize(
    ('files', 'fields', 'status', 'message'),
    [
        ({'image': ('a.png', wide_png())}, {}, 400, '2500000000 pixels'),
        ({'image': ('a.png', wide_png(50_000, 10))}, {}, 413, 'image has 50000 x 10 pixels'),
        ({'image': ('a.png', b'no image')}, {}, 400, 'image: not an image'),
        ({'image': ('a.png', file(source())[:200])}, {}, 400, 'image'),
        ({'image': ('a.png', b'x' * 30_000)}, {}, 413, 'more than 20000 bytes'),
        ({'picture': ('a.png', b'x')}, {}, 400, 'picture is of the wrong kind; wanted text'),
        (None, {'mask': '/etc/passwd'}, 400, 'mask is of the wrong kind; wanted an image file'),
        (None, {'strength': 'much'}, 400, "strength is 'much'; wanted a number from 0 to 1"),
        (None, {'strength': '2'}, 400, 'strength is 2.0'),
        (None, {'prompt': ''}, 400, 'prompt is empty'),
        (None, {'n': '9'}, 400, "n is 9; wanted a whole number from 1 to 5"),
        (None, {'source_prompt': 'x' * 101}, 400, 'source_prompt has 101 characters'),
        (None, {'source_prompt': 'a\0'}, 400, 'source_prompt holds a zero byte'),
        (None, {'source_prompt': 'a', 'negative_prompt': 'b'}, 400, 'give one of them'),
        (None, {'path': '/etc/passwd'}, 400, "unknown field 'path'"),
    ],
)  # fmt: skip
def test_wrong_edits_are_named(http, files, fields, status, message):
    answer = edit(http, files, **fields)
    assert (answer.status_code, message in answer.json()['error']['message']) == (status, True), (
        answer.text
    )


def test_a_mask_of_another_size(http):
    files = {'image': ('a.png', file(source())), 'mask': ('m.png', file(mask((6, 8))))}
    assert 'wanted the same size' in edit(http, files).json()['error']['message']


def test_a_form_without_an_image(http):
    answer = http.post(EDITS, data={'prompt': 'a'}, files={'seed': (None, '3')})
    assert answer.json()['error']['message'].startswith('no image is given')


def test_bodies_that_are_no_form(http):
    assert http.post(EDITS, json={'prompt': 'a'}).status_code == 415
    headers = {'Content-Type': 'multipart/form-data; boundary=x'}
    answer = http.post(EDITS, content=b'--y\r\n', headers=headers)
    assert answer.status_code == 400
    answer = http.post(EDITS, content=b'', headers={'Content-Type': 'multipart/form-data'})
    assert 'the form cannot be read' in answer.json()['error']['message']
