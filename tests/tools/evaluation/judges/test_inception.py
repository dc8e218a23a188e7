"""FID and its like: the command with a stand-in for torch-fidelity, and errors in one line."""

import sys

import numpy as np
import pytest
import safetensors.numpy
from helpers.data_folders import encoded
from PIL import Image

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.judges import inception
from infinity_jax.tools.evaluation.judges.image_folder import read_pixels
from infinity_jax.tools.evaluation.report.find import find_results


def folder(tmp_path, count=8):
    """Images in pred/ and gt/."""
    for name in ('pred', 'gt'):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f'{i:06}.png').write_bytes(encoded(60, 64, i, 'PNG'))
    return tmp_path


def extract(pixels_BYX3):
    """Features in place of the network's: means and spreads of quarters."""
    parts = pixels_BYX3.reshape(len(pixels_BYX3), 4, 15, 4, 16, 3) / 255
    return np.concatenate(
        [f((2, 4)).reshape(len(parts), -1) for f in (parts.mean, parts.std)], axis=1
    ).astype(np.float32)


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(inception, 'load_network', lambda path: extract)


def test_the_command_prints_a_calibration_then_the_figures(tmp_path, network, monkeypatch, capsys):
    figures = {'FID': 12.5, 'KID': -0.001, 'precision': 0.75, 'recall': 0.5}
    figures |= {'kid_spread': 0.01, 'kid_subset': 8}
    monkeypatch.setattr(inception, 'measure', lambda generated, true: figures)
    main(['evaluate', 'fid', str(folder(tmp_path)), '--inception', 'w.pth'])
    output = capsys.readouterr().out
    assert output.index('the other half') < output.index('shuffled tiles') < output.index('12.5')
    (results,), problems = find_results(tmp_path)
    assert not problems and results.images == 8
    assert {row.name: row.estimate.value for row in results.rows} == {
        name: figures[name] for name in ('FID', 'KID', 'precision', 'recall')
    }
    assert 'weights: w.pth' in output and 'a FID of 8 images is larger than one of more' in output
    main(['evaluate', 'report', str(tmp_path)])
    assert not (tmp_path / 'report.png').exists() and (tmp_path / 'report.txt').exists()


def test_features_do_not_depend_on_the_sizes_before(tmp_path):
    (tmp_path / 'a').mkdir()
    for i, size in enumerate([(60, 64), (60, 64), (120, 128), (60, 64)]):
        (tmp_path / 'a' / f'{i}.png').write_bytes(encoded(*size, i, 'PNG'))
    paths = sorted((tmp_path / 'a').iterdir())
    seen = []

    def record(pixels):
        seen.append(pixels.shape)
        return pixels.reshape(len(pixels), -1)[:, :5]

    found = inception.features_of(record, paths)
    assert [shape[0] for shape in seen] == [2, 1, 1]
    np.testing.assert_array_equal(found, [read_pixels(path).ravel()[:5] for path in paths])


def test_a_calibration_orders_changes(tmp_path):
    random = np.random.default_rng(0)
    for i in range(40):  # fine grain above, dark and blue below
        pixels = random.integers(0, 256, (60, 64, 3), np.uint8)
        pixels[30:] //= np.array([4, 2, 1], np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
    paths = sorted(tmp_path.iterdir())
    distances = inception.calibration(extract, paths, inception.features_of(extract, paths))
    assert min(distances, key=distances.get) == 'the other half' and len(distances) == 4


def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch):
    weights = tmp_path / 'w.safetensors'
    tensors = {name: np.zeros(shape, np.float32) for name, shape in inception.SHAPES.items()}
    tensors['fc.weight'] = np.zeros((1000, 2048), np.float32)
    safetensors.numpy.save_file(tensors, weights)
    for module in ('torch_fidelity', 'torch'):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"torch_fidelity .*: pip install 'infinity_jax\[fid"):
        inception.load_network(weights)
    monkeypatch.setattr(inception, 'import_optional', lambda module, install: None)
    with pytest.raises(UserError, match=r'fc.weight is \(1000, 2048\); wanted \(1008, 2048\), of'):
        inception.load_network(weights)
    with pytest.raises(UserError, match='pred: no such folder'):
        inception.evaluate_fid(tmp_path, weights)
    with pytest.raises(UserError, match='pred: 3 images; wanted 4 or more'):
        inception.evaluate_fid(folder(tmp_path, 3), weights)


@pytest.mark.parametrize(
    'content', ['{}', '[]', '{"images": {}}', '{"images": {"pred": 4, "gt": "x"}}', 'null']
)
def test_scores_of_another_layout_are_one_line(tmp_path, content):
    (tmp_path / 'fid_scores.json').write_text(content)
    results, (problem,) = find_results(tmp_path)
    assert not results and 'not as evaluate fid writes it' in problem


@pytest.mark.numeric
def test_a_file_of_random_weights_gives_the_features_of_its_network(tmp_path, monkeypatch):
    name = 'torch_fidelity.feature_extractor_inceptionv3'
    module = pytest.importorskip(name, exc_type=Exception)
    torch = pytest.importorskip('torch')
    with monkeypatch.context() as patch:  # a network without a file
        patch.setattr(module, 'load_state_dict_from_url', lambda *args, **kwargs: {})
        patch.setattr(torch.nn.Module, 'load_state_dict', lambda self, state: None)
        network = module.FeatureExtractorInceptionV3(inception.NETWORK, [inception.LAYER])
    torch.manual_seed(0)
    for each in (x for x in network.parameters() if x.ndim == 4):
        torch.nn.init.kaiming_normal_(each)
    path = tmp_path / 'inception.pth'
    torch.save(network.state_dict(), path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    found = inception.load_network(path)(pixels)
    expected = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))[0].numpy()
    assert found.shape == (2, inception.FEATURES) and found.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match='inception.pth') as error:
        inception.load_network(path)
    assert '\n' not in str(error.value)


@pytest.mark.numeric
def test_figures_are_those_of_torch_fidelity():
    pytest.importorskip('torch_fidelity', exc_type=Exception)
    random = np.random.default_rng(0)
    generated, true = (random.normal(size=(300, 16)).astype(np.float32) for _ in range(2))
    found = inception.measure(generated + 0.5, true)
    assert found['FID'] == pytest.approx(inception.frechet_distance(generated + 0.5, true), 1e-3)
    assert found['kid_subset'] == 300 and 0 < found['KID'] and 0 < found['recall'] <= 1
