"""Makes small data sets of every kind, with good and broken records."""

import csv
import io
import json
import tarfile

import numpy as np
from PIL import Image


def encoded(height, width, seed=0, kind='JPEG', **options):
    """Bytes of an image file of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def line(image, **fields):
    """A line in the layout of the released data; its h_div_w is wrong."""
    fields = {'long_caption': '', 'long_caption_type': 'user_prompt', 'text': '', **fields}
    return json.dumps({'image_path': image, 'h_div_w': 7.0, 'short_caption_type': 'x', **fields})


def jsonl_folder(folder, count=12, broken=True):
    """A folder of images of two shapes, listed under wrong ratios and counts; 4 of 16 are broken.

    Lines of '1.000_99999.jsonl', from 1: wide.jpg images, then a missing image, a truncated
    one, an empty caption, bad JSON. Good images are half squares, half twice as wide as high.
    """
    folder.mkdir()
    lines = []
    for i in range(count):
        name = f'{i:02}.jpg'
        (folder / name).write_bytes(encoded(64, 64 if i % 2 else 128, i))
        lines.append(line(name, text=f'jsonl {i} --ar 16:9'))
    if broken:
        (folder / 'cut.jpg').write_bytes(encoded(64, 64, 77, quality=95)[:-900])
        lines += [
            line('missing.jpg', text='missing'),
            line('cut.jpg', text='truncated'),
            line('01.jpg', text=' '),
            '{"image_path": "01.jpg", ',
        ]
    half = len(lines) // 2
    (folder / '1.000_99999.jsonl').write_text('\n'.join(lines[:half]) + '\n\n')
    (folder / '0.500_1.jsonl').write_text('\n'.join(lines[half:]))
    return folder


def add_member(shard, name, content):
    """Appends a file to an open tar shard."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def tar_folder(folder, count=10):
    """Two shards; texts alternate between .txt and .json; squares and tall images."""
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f'{number:03}.tar', 'w') as shard:
            for i in range(number, count, 2):
                image = encoded(64 if i % 4 < 2 else 128, 64, 100 + i, 'PNG')
                add_member(shard, f'part/{i:04}.png', image)
                if i % 3:
                    add_member(shard, f'part/{i:04}.txt', f'tar {i}'.encode())
                else:
                    add_member(
                        shard, f'part/{i:04}.json', json.dumps({'text': f'tar {i}'}).encode()
                    )
    return folder


def tfds_folder(folder, count=8):
    """A data set built with TFDS as ArrayRecord; returns the folder that describes it."""
    import tensorflow_datasets as tfds

    # Each call defines the class again, and TFDS refuses a name that is registered.
    with tfds.core.registered.skip_registration():

        class Squares(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version('1.0.0')

            def _info(self):
                features = {
                    'image': tfds.features.Image(),
                    'label': tfds.features.Text(),
                    'captions': tfds.features.Sequence({'text': tfds.features.Text()}),
                }
                features = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {'train': self._generate_examples()}

            def _generate_examples(self):
                for i in range(count):
                    texts = [{'text': f'tfds {i} a'}, {'text': f'tfds {i} b'}]
                    image = io.BytesIO(encoded(64, 64, 200 + i))
                    yield i, {'image': image, 'label': f'tfds {i}', 'captions': texts}

    builder = Squares(data_dir=folder, file_format='array_record')
    builder.download_and_prepare()
    return builder.data_dir


def imagefolder_folder(folder, count=8):
    """A Hugging Face imagefolder: metadata.jsonl, and metadata.csv in a subfolder, half each."""
    (folder / 'more').mkdir(parents=True)
    rows = []
    for i in range(count):
        where = folder / ('more' if i % 2 else '')
        (where / f'{i:02}.png').write_bytes(encoded(64, 64, 300 + i, 'PNG'))
        rows.append((f'{i:02}.png', f'imagefolder {i}, "red"\nand\u2028blue'))
    lines = [json.dumps({'file_name': name, 'text': text}) for name, text in rows[::2]]
    (folder / 'metadata.jsonl').write_text('\n'.join(lines))
    with (folder / 'more' / 'metadata.csv').open('w', newline='', encoding='utf-8-sig') as file:
        csv.writer(file).writerows([('file_name', 'text'), *rows[1::2]])
    return folder


def sidecar_folder(folder, count=8):
    """Images with texts of the same name, as img2dataset writes files: in subfolders, with JSON."""
    for i in range(count):
        where = folder / f'{i % 2:05}'
        where.mkdir(parents=True, exist_ok=True)
        (where / f'{i:09}.jpg').write_bytes(encoded(64, 64, 400 + i))
        (where / f'{i:09}.txt').write_text(f'sidecar {i}')
        (where / f'{i:09}.json').write_text(json.dumps({'caption': f'{i}', 'url': '', 'text': 'x'}))
    return folder


def image_table(count=8, name='parquet'):
    """A table as the hub stores images: bytes and paths; captions are lists of one or two."""
    import pyarrow as pa

    images = [
        {'bytes': encoded(64, 64, 500 + i), 'path': None if i % 2 else f'{i}.jpg'}
        for i in range(count)
    ]
    texts = [[f'{name} {i} a', f'{name} {i} b'][: 1 + i % 2] for i in range(count)]
    return pa.table({'image': images, 'caption': texts, 'label': list(range(count))})


def parquet_folder(folder, count=8):
    """Two Parquet files of the split train, in row groups of three, and one of the split test."""
    import pyarrow.parquet

    folder.mkdir()
    table = image_table(count)
    for number in range(2):
        part = table.slice(number * count // 2, count // 2)
        path = folder / f'train-{number:05}-of-00002.parquet'
        pyarrow.parquet.write_table(part, path, row_group_size=3)
    pyarrow.parquet.write_table(table.slice(0, 1), folder / 'test-00000-of-00001.parquet')
    return folder


def arrow_folder(folder, count=8):
    """The files that `save_to_disk` of the library `datasets` writes for two splits."""
    import pyarrow as pa

    table, splits = image_table(count, 'arrow'), ('train', 'test')
    for split in splits:
        (folder / split).mkdir(parents=True)
        name = 'data-00000-of-00001.arrow'
        with pa.OSFile(str(folder / split / name), 'wb') as file:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=3)
        state = {'_data_files': [{'filename': name}], '_split': split}
        (folder / split / 'state.json').write_text(json.dumps(state))
        (folder / split / 'dataset_info.json').write_text('{}')
    (folder / 'dataset_dict.json').write_text(json.dumps({'splits': splits}))
    return folder
