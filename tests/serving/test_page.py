"""The page in a real browser: headless Chromium with its driver, where they are installed."""

import shutil

import pytest
from helpers.serving import running

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason='chromium and chromedriver are not installed (Debian: chromium, chromium-driver)',
)
WATCH = """
window.notes = [];
new MutationObserver(() => {
  for (const caption of document.querySelectorAll('figcaption')) {
    const text = caption.textContent;
    if (text.startsWith('scale') && !window.notes.includes(text)) window.notes.push(text);
  }
}).observe(document.getElementById('gallery'), {subtree: true, childList: true});
"""


@pytest.fixture(scope='module')
def url():
    with running() as (_, url):
        yield url


@pytest.fixture(scope='module')
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage'):
        options.add_argument(f'--{flag}')
    options.add_argument('--window-size=1200,900')
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, url):
    driver.get(url)
    driver.execute_script('localStorage.clear()')
    driver.refresh()
    until(driver, lambda: driver.find_element(By.ID, 'about').text)
    return driver


def until(driver, condition):
    return WebDriverWait(driver, 60, poll_frequency=0.1).until(lambda _: condition())


def finished(page, count):
    """The images of the gallery, once there are so many with their settings."""
    until(page, lambda: len(page.find_elements(By.CSS_SELECTOR, 'figcaption .row')) == count)
    return [
        image.get_attribute('src') for image in page.find_elements(By.CSS_SELECTOR, 'figure img')
    ]


def type_into(page, name, text):
    field = page.find_element(By.ID, name)
    field.clear()
    field.send_keys(text)
    return field


def test_images_appear_scale_by_scale_and_their_settings_load_again(page):
    page.execute_script(WATCH)
    type_into(page, 'seed', '5')
    type_into(page, 'guidance', '2.5')
    type_into(page, 'negative', 'green')
    type_into(page, 'prompt', 'a ghost').send_keys(Keys.CONTROL, Keys.ENTER)
    images = finished(page, 2)
    assert len(set(images)) == 2 and all(src.startswith('data:image/png') for src in images)
    assert page.execute_script('return window.notes') == ['scale 1 of 3', 'scale 2 of 3']
    assert page.find_element(By.ID, 'status').text == 'Done.'
    page.refresh()  # the gallery is kept
    assert finished(page, 2) == images
    type_into(page, 'prompt', 'something else')
    page.find_element(By.XPATH, '//button[text()="Load settings"]').click()
    values = {
        name: page.find_element(By.ID, name).get_attribute('value')
        for name in ('prompt', 'negative', 'seed', 'guidance', 'temperature', 'count')
    }
    assert values == {
        'prompt': 'a ghost', 'negative': 'green', 'seed': '5', 'guidance': '2.5',
        'temperature': '0.5', 'count': '2',
    }  # fmt: skip
    page.find_element(By.ID, 'go').click()
    assert finished(page, 4) == images * 2


def test_what_is_wrong_is_said(page):
    type_into(page, 'count', '1')
    type_into(page, 'prompt', 'a' * 101)
    page.find_element(By.ID, 'go').click()
    status = page.find_element(By.ID, 'status')
    until(page, lambda: 'prompt has 101 characters' in status.text)
    assert not page.find_elements(By.TAG_NAME, 'figure')


def test_a_painted_mask_is_edited_and_the_rest_stays(page):
    type_into(page, 'count', '1')
    type_into(page, 'prompt', 'a ghost')
    page.find_element(By.ID, 'go').click()
    (source,) = finished(page, 1)
    page.find_element(By.XPATH, '//figcaption//button[text()="Edit"]').click()
    mask = page.find_element(By.ID, 'mask')
    until(page, mask.is_displayed)
    mask.send_keys(Keys.ARROW_UP, ' ')  # by keyboard
    painted = """
        const mask = document.getElementById('mask');
        const data = mask.getContext('2d').getImageData(0, 0, mask.width, mask.height).data;
        return Array.from(data).filter((value, i) => i % 4 === 3 && value > 16).length;
    """
    few = page.execute_script(painted)
    assert few > 0
    page.execute_script(
        'arguments[0].value = 40; arguments[0].oninput()', page.find_element(By.ID, 'brush')
    )
    actions = webdriver.ActionChains(page)
    actions.move_to_element(mask).click_and_hold().move_by_offset(20, 0).release().perform()
    assert page.execute_script(painted) > few
    type_into(page, 'prompt', 'a cat')
    page.find_element(By.ID, 'go').click()
    edited = finished(page, 2)[0]
    changed = page.execute_async_script(
        """
        const [a, b, done] = arguments;
        const mask = document.getElementById('mask');
        const kept = mask.getContext('2d').getImageData(0, 0, mask.width, mask.height).data;
        const read = src => new Promise(done => {
          const image = new Image();
          image.onload = () => {
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.width, image.height];
            const pen = canvas.getContext('2d');
            pen.drawImage(image, 0, 0);
            done(pen.getImageData(0, 0, image.width, image.height).data);
          };
          image.src = src;
        });
        Promise.all([read(a), read(b)]).then(([a, b]) => {
          let inside = 0, outside = 0;
          for (let i = 0; i < a.length; i++)
            if (a[i] !== b[i]) kept[i - i % 4 + 3] > 16 ? inside++ : outside++;
          done([inside, outside]);
        });
        """,
        source,
        edited,
    )
    assert changed[0] > 0 and changed[1] == 0
    page.find_element(By.ID, 'extend').click()
    size = "const mask = document.getElementById('mask'); return [mask.width, mask.height]"
    until(page, lambda: page.execute_script(size) == [6, 8])
    until(page, lambda: page.execute_script(painted) == 6 * 8 - 4 * 6)


def test_an_image_shows_its_bits(page):
    type_into(page, 'count', '1')
    page.find_element(By.ID, 'go').click()
    finished(page, 1)
    page.find_element(By.XPATH, '//figcaption//button[text()="Edit"]').click()
    until(page, page.find_element(By.ID, 'mask').is_displayed)
    page.find_element(By.ID, 'tab-edit').send_keys(Keys.ARROW_RIGHT)
    page.find_element(By.ID, 'go').click()
    finished(page, 4)
    captions = [c.text.splitlines()[0] for c in page.find_elements(By.TAG_NAME, 'figcaption')]
    assert captions[:3] == [
        'after 1 of 3 scales, 4 bits', 'after 2 of 3 scales, 20 bits',
        'after 3 of 3 scales, 44 bits',
    ]  # fmt: skip


def test_nothing_is_loaded_from_elsewhere_and_a_phone_needs_no_scrolling_sideways(page, url):
    loaded = page.execute_script('return performance.getEntries().map(e => e.name)')
    assert not [name for name in loaded if name.startswith('http') and not name.startswith(url)]
    page.set_window_size(500, 800)  # headless Chromium has no narrower window
    wide = 'return document.documentElement.scrollWidth - document.documentElement.clientWidth'
    assert page.execute_script(wide) <= 0
    for name in page.find_elements(By.CSS_SELECTOR, 'input, textarea, select'):
        label = page.execute_script('return arguments[0].labels.length', name)
        assert label, name.get_attribute('id')
