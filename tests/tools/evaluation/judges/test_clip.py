"""CLIP score: the command with stand-ins for both towers, and a tiny model where torch is there."""

import json
import sys

import numpy as np
import pytest
from helpers.data_folders import encoded

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.benchmarks.readers import READERS
from infinity_jax.tools.evaluation.judges import clip
from infinity_jax.tools.evaluation.report.find import find_results

CAPTIONS = ['dark', 'bright', 'a much longer caption that is bright']


def folder(tmp_path, captions=CAPTIONS):
    """A finished folder of captions; images are dark or bright."""
    lines = []
    for i, caption in enumerate(captions):
        (tmp_path / f'{i}.png').write_bytes(b'')
        lines.append(json.dumps({'text': caption, 'image_path': f'{i}.png'}) + '\n')
    file, out = tmp_path / 'captions.jsonl', tmp_path / 'out'
    file.write_text(''.join(lines))
    benchmark = READERS['captions'](file, 1, out)
    for name in ('pred', 'gt'):
        (out / name).mkdir(parents=True)
    for i, item in enumerate(benchmark.items):
        (out / item.files[0]).write_bytes(encoded(40, 32, i, 'PNG'))
        (out / item.original[1]).write_bytes(encoded(48, 32, i, 'PNG'))
    run = {'benchmark': 'captions', 'images_per_prompt': 1}
    run['prompts'] = {'file': str(file), 'sha256': benchmark.digest}
    (out / 'run.json').write_text(json.dumps(run))
    return out


def towers(monkeypatch):
    """Generated images (40 rows) agree with their captions by 0.6, true ones (48 rows) by 1."""
    count = [0]

    def images(pixels):
        rows = []
        for each in pixels:
            own = 0.6 if each.shape[0] == 40 else 1.0
            rows.append(np.zeros(4))
            rows[-1][count[0] % 3] = own
            rows[-1][3] = -np.sqrt(1 - own**2)
            count[0] += 1
        return np.stack(rows)

    model = clip.Clip('tiny', images, lambda texts: np.eye(4)[: len(texts)], 5, lambda t: [3, 9, 9])
    monkeypatch.setattr(clip, 'load_clip', lambda path: model)


def test_the_command_prints_a_calibration_then_the_score(tmp_path, monkeypatch, capsys):
    towers(monkeypatch)
    out = folder(tmp_path)
    main(['evaluate', 'clip', str(out), '--model', 'models/tiny'])
    output = capsys.readouterr().out
    assert output.index(clip.OTHERS) < output.index(clip.TRUE) < output.index('overall')
    assert '2 of 3 prompts are cut at 5 tokens' in output
    (results,), problems = find_results(out)
    assert not problems and results.images == 3
    assert results.rows[0].estimate.value == pytest.approx(60)
    content = json.loads((out / 'clip_scores.json').read_text())
    assert content['calibration'] == pytest.approx({clip.OTHERS: 0, clip.TRUE: 100})


def test_what_cannot_be_scored_is_one_line(tmp_path, monkeypatch):
    towers(monkeypatch)
    out = folder(tmp_path)
    (out / 'pred' / '000001.png').write_bytes(b'half')
    with pytest.raises(UserError, match='000001.png: not a readable image'):
        clip.evaluate_clip(out, tmp_path)
    (out / 'pred' / '000001.png').unlink()
    with pytest.raises(UserError, match='000001.png: absent, as are 1 of 3 images'):
        clip.evaluate_clip(out, tmp_path)
    (out / 'run.json').write_text('{"benchmark": "other"}')
    with pytest.raises(UserError, match="of benchmark 'other'; wanted geneval"):
        clip.evaluate_clip(out, tmp_path)
    (out / 'clip_scores.json').write_text('{"model": "tiny", "entries": []}')
    _, (problem,) = find_results(out)
    assert 'not as evaluate clip writes it (ZeroDivisionError' in problem


def save_model(path):
    """A tiny random CLIP, with the bytes as its vocabulary."""
    transformers = pytest.importorskip('transformers')
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tower = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1}
    tower |= {'num_attention_heads': 2, 'projection_dim': 8}
    text = tower | {'vocab_size': 514, 'bos_token_id': 512, 'eos_token_id': 513}
    text['max_position_embeddings'] = 20
    vision = tower | {'image_size': 32, 'patch_size': 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(path)
    letters = list(bytes_to_unicode().values())
    names = [*letters, *(f'{x}</w>' for x in letters), '<|startoftext|>', '<|endoftext|>']
    (path / 'vocab.json').write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (path / 'merges.txt').write_text('#version: 0.2\n')
    (path / 'tokenizer_config.json').write_text('{"tokenizer_class": "CLIPTokenizer"}')
    sizes = {'size': {'shortest_edge': 32}, 'crop_size': {'height': 32, 'width': 32}}
    processor = {'image_processor_type': 'CLIPImageProcessor', 'do_normalize': True, **sizes}
    (path / 'preprocessor_config.json').write_text(json.dumps(processor))


@pytest.mark.numeric
def test_towers_are_those_of_the_model(tmp_path):
    torch = pytest.importorskip('torch')
    import transformers

    (tmp_path / 'model').mkdir()
    save_model(tmp_path / 'model')
    found = clip.load_clip(tmp_path / 'model')
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (h, 40, 3), np.uint8) for h in (32, 50)]
    prompts = ['a cat', 'a dog ' * 30]
    assert found.tokens == 20 and found.lengths(prompts)[1] > 20
    model = transformers.CLIPModel.from_pretrained(tmp_path / 'model').eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / 'model')
    inputs = processor(
        text=prompts,
        images=pixels,
        padding=True,
        truncation=True,
        max_length=20,
        return_tensors='pt',
    )
    with torch.inference_mode():
        output = model(**inputs)
    np.testing.assert_allclose(found.images(pixels), output.image_embeds, atol=1e-5)
    np.testing.assert_allclose(found.texts(prompts), output.text_embeds, atol=1e-5)
    assert np.abs(output.text_embeds[0] - output.text_embeds[1]).max() > 1e-3


def test_a_folder_of_something_else_is_one_line(tmp_path):
    pytest.importorskip('torch')
    with pytest.raises(UserError, match='no config.json in it; wanted a folder of a CLIP model'):
        clip.load_clip(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match='of type t5; wanted clip'):
        clip.load_clip(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_')
    with pytest.raises(UserError, match='cannot be read .*; wanted a folder of a CLIP model'):
        clip.load_clip(tmp_path)


def test_torch_is_named_where_it_is_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(UserError, match=r"package torch .*: pip install 'infinity_jax\[clip\]'"):
        clip.load_clip(tmp_path)
