"""The network against a direct computation, and the reader of its weights."""

import functools

import numpy as np
import pytest
import safetensors.numpy
from helpers.data_folders import encoded
from scipy.signal import correlate2d

from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.recognition import efficientnet, image_sets, report
from infinity_jax.tools.evaluation.recognition.efficientnet import (
    Convolution,
    convolutions,
    load_weights,
    recognise,
)


def random_file(path, **replaced):
    """Weights of the right names and shapes; running variances are above zero."""
    random = np.random.default_rng(0)
    tensors = {}
    for conv in (conv for part in convolutions() for conv in part):
        fan = np.prod(conv.shape[1:])
        tensors[f'{conv.kernel}.weight'] = random.normal(size=conv.shape) * np.sqrt(2 / fan)
        channels = conv.shape[0]
        tensors[f'{conv.norm}.weight'] = random.uniform(0.5, 1.5, channels)
        tensors[f'{conv.norm}.bias'] = random.normal(size=channels) * 0.1
        tensors[f'{conv.norm}.running_mean'] = random.normal(size=channels) * 0.1
        tensors[f'{conv.norm}.running_var'] = random.uniform(0.5, 1.5, channels)
    tensors['_fc.weight'] = random.normal(size=(1000, 1280)) / 36
    tensors['_fc.bias'] = random.normal(size=1000)
    tensors |= replaced
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
    safetensors.numpy.save_file(arrays, path)
    return arrays


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'lite0.safetensors'
    return path, random_file(path)


@functools.cache
def few_parameters():
    """4.65 million, with 1,000 classes, as published."""
    kernels = sum(np.prod(c.shape) for part in convolutions() for c in part)
    norms = sum(2 * c.shape[0] for part in convolutions() for c in part)
    return kernels + norms + 1000 * 1281


def test_the_network_has_the_published_size():
    assert few_parameters() == 4_652_008
    assert len(convolutions()) == 18


def direct(arrays, conv: Convolution, x_hwc):
    """Convolution and batch norm of one image, channel by channel, padded as TensorFlow does."""
    out, inner, size, _ = conv.shape
    pads = []
    for edge in x_hwc.shape[:2]:
        total = max((-(-edge // conv.stride) - 1) * conv.stride + size - edge, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x_hwc, (*pads, (0, 0)))
    kernel = arrays[f'{conv.kernel}.weight']
    result = []
    for o in range(out):
        inputs = [o] if conv.depthwise else range(inner)
        total = sum(correlate2d(x[..., c], kernel[o, k], 'valid') for k, c in enumerate(inputs))
        result.append(total[:: conv.stride, :: conv.stride])
    names = ('weight', 'bias', 'running_mean', 'running_var')
    gain, bias, mean, variance = (arrays[f'{conv.norm}.{name}'] for name in names)
    return (np.stack(result, -1) - mean) / np.sqrt(variance + 1e-3) * gain + bias


@pytest.mark.numeric
@pytest.mark.parametrize('part, edge', [(0, 9), (2, 8), (3, 5), (4, 7)])
def test_a_convolution_with_its_norm_is_that_of_the_file(weights, part, edge):
    path, arrays = weights
    params = load_weights(path)
    for conv, layer in zip(convolutions()[part], params['parts'][part], strict=True):
        channels = conv.shape[0] if conv.depthwise else conv.shape[1]
        x = np.random.default_rng(part).normal(size=(edge, edge + 1, channels)).astype(np.float32)
        expected = direct(arrays, conv, x)
        if not conv.kernel.endswith('_project_conv'):
            expected = np.clip(expected, 0, 6)
        found = efficientnet._convolve(conv, layer, x[None])[0]
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.numeric
def test_features_are_means_over_an_image_and_classes_are_their_products(weights):
    path, arrays = weights
    params = load_weights(path)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    features, logits = (np.asarray(x) for x in recognise(params, pixels))
    assert features.shape == (2, 1280) and logits.shape == (2, 1000)
    assert features.min() >= 0 and features.max() <= 6 and features.std() > 0.01
    expected = features @ arrays['_fc.weight'].T + arrays['_fc.bias']
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_weights_of_another_network_are_refused(tmp_path):
    random_file(tmp_path / 'other.safetensors', **{'_bn1.bias': np.zeros(7)})
    with pytest.raises(UserError, match=r'_bn1.bias is \(7,\); wanted \(1280,\), of EfficientNet'):
        load_weights(tmp_path / 'other.safetensors')
    safetensors.numpy.save_file({'x': np.zeros(1)}, tmp_path / 'x.safetensors')
    with pytest.raises(
        UserError, match=r'_conv_stem.weight is absent; wanted|_bn0.weight is absent'
    ):
        load_weights(tmp_path / 'x.safetensors')


def test_the_package_with_weights_is_named_if_it_is_absent(monkeypatch):
    monkeypatch.setattr(efficientnet, 'PACKAGE', 'no_such_package')
    with pytest.raises(UserError, match=r"install 'infinity_jax\[judges\]', or name a file"):
        efficientnet.find_weights()


def fake(params, pixels_BYX3):
    """Features in place of the network's: mean colours by quarter, which tell the changes apart."""
    pixels = np.asarray(pixels_BYX3, np.float32) / 255
    parts = pixels.reshape(len(pixels), 4, 56, 4, 56, 3)
    means, spreads = parts.mean((2, 4)), parts.std((2, 4))
    features = np.concatenate([means.reshape(len(pixels), -1), spreads.reshape(len(pixels), -1)], 1)
    return features, np.eye(1000, dtype=np.float32)[: len(pixels)] * 9


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sets, 'recognise', fake)
    for name, seeds in (('a', range(12)), ('b', range(6, 18))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            (tmp_path / name / f'{seed:02}.jpg').write_bytes(encoded(80, 90, seed))
    return tmp_path


def test_a_report_has_calibration_distance_copies_and_classes(folders, weights, capsys):
    results = report.evaluate_images(folders / 'a', folders / 'b', weights[0], out=folders / 'out')
    output = capsys.readouterr().out
    assert output.index('the other half') < output.index('of 12 images to 12 reference images')
    assert 'not FID' in output and 'fewer images than the 1280 features' in output
    assert [*results['calibration']] == [
        'the other half', 'blurred copies', 'recoloured copies', 'shuffled tiles',
    ]  # fmt: skip
    copies = [(a[-6:], b[-6:]) for a, b, cosine in results['nearest'] if cosine > 1 - 1e-6]
    assert sorted(copies) == [(f'{i:02}.jpg', f'{i:02}.jpg') for i in range(6, 12)]
    assert len(results['classes']) == 12
    assert all(len(found) == 5 and found[0][1] > 0.8 for found in results['classes'].values())
    assert (folders / 'out' / 'recognition.json').exists()


def test_a_distance_of_equal_sets_is_zero_and_a_set_of_three_has_no_halves(folders):
    paths = image_sets.images_in(folders / 'a')
    images = image_sets.recognise_files({}, paths)
    assert image_sets.frechet_distance(images.features_ND, images.features_ND) < 1e-6
    with pytest.raises(UserError, match='3 images; a distance wants 4 or more'):
        image_sets.calibration({}, image_sets.recognise_files({}, paths[:3]))


def test_changed_copies_keep_their_pixels_or_their_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    mixed = image_sets.shuffled(pixels, 3)
    assert (np.sort(mixed, axis=None) == np.sort(pixels, axis=None)).all()
    assert (mixed != pixels).any() and (mixed == image_sets.shuffled(pixels, 3)).all()
    assert (image_sets.recoloured(pixels, 0)[..., 0] == pixels[..., 1]).all()
    assert image_sets.blurred(pixels, 0).std() < pixels.std() / 2


def test_a_calibration_that_does_not_order_is_said():
    lines = report.calibration_lines({'the other half': 2.0, 'blurred copies': 1.0}, 5000)
    assert lines[-1] == '  warning: blurred copies should be farther away than the other half'


def test_folders_without_images(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        image_sets.images_in(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='no images in it'):
        image_sets.images_in(tmp_path)
    (tmp_path / 'a.png').write_bytes(b'x')
    with pytest.raises(UserError, match='a.png: not a readable image'):
        image_sets.recognise_files({}, image_sets.images_in(tmp_path))
