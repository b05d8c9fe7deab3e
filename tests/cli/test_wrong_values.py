"""Wrong values of all sections of a configuration: each is one clear line, before any work."""

from __future__ import annotations

import functools
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jsonargparse._typehints
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from test_cli import QUICK, ROOT, fedkd

from fedkd.cli import errors

STRATEGIES = "Choose one of: ClosedFormHead, Compose, CoordinateMedian, DPFedAvg, "
STUDENTS = "Choose one of: cnn, hf/NAME, mobilenet_v2, "
FEATURE = f"--model.teacher FeatureTeacher --model.teacher.checkpoint {ROOT}/fedkd/teachers/checkpoints/digits "

WRONG: dict[str, list[tuple[str, str]]] = {
    "data": [
        ("--data.num_clients 0", "data.num_clients must be >= 1 and <= 10000000, got 0."),
        ("--data.num_clients 1000000000000", "data.num_clients must be >= 1 and <= 10000000, got 1000000000000."),
        ("--data.num_clients 2.5", "data.num_clients: '2.5' is none of int, null."),
        ("--data.num_clients many", "data.num_clients: 'many' is none of int, null."),
        ("--data.num_clients", "argument --data.num_clients: expected one argument"),
        ("--data.num_cliets 1", "There is no option --data.num_cliets. Did you mean --data.num_clients?"),
        ("--data.batch_size 0", "data.batch_size must be >= 1, got 0."),
        ("--data.batch_size abc", "data.batch_size: 'abc' is not of type int."),
        ("--data.eval_batch_size 0", "data.eval_batch_size must be >= 1, got 0."),
        ("--data.public_fraction 1.5", "data.public_fraction must be >= 0 and < 1, got 1.5."),
        ("--data.public_fraction nan", "data.public_fraction: 'nan' is not of type float."),
        ("--data.public_fraction .nan", "data.public_fraction must be >= 0 and < 1, got nan."),
        ("--data.public_fraction 0.9999", "data.public_fraction 0.9999 leaves the clients none of the 1438"),
        ("--data.val_fraction 1", "data.val_fraction must be >= 0 and < 1, got 1.0."),
        ("--data.views 0", "data.views must be >= 1 and <= 10000, got 0."),
        ("--data.seed 5", "data.seed follows seed_everything: set --seed_everything instead."),
        ("--data null", "data: 'null' is no file with its options. Give them one by one, --data.OPTION VALUE."),
    ],
    "dataset": [
        (
            "--data.dataset Digitz",
            "data.dataset: Unknown class 'Digitz'. Did you mean 'Digits'? Choose one of: CIFAR10,",
        ),
        ("--data.dataset os.system", "data.dataset: os.system is no ImageSource. Choose one of: CIFAR10, CIFAR100, "),
        ("--data.dataset torch.nn.Linear", "data.dataset: torch.nn.Linear is no ImageSource. Choose one of: CIFAR10,"),
        ("--data.dataset ImageFolder", "data.dataset.root must be set."),
        ("--data.dataset ImageFolder --data.dataset.root no/such", "data.dataset: The image folder "),
        (
            "--data.dataset ImageFolder --data.dataset.rot x",
            "data.dataset: Unknown option 'rot'. Did you mean 'root'? Choose one of: image_size, root.",
        ),
        (
            "--data.dataset ImageFolder --data.dataset.root x --data.dataset.image_size 0",
            "data.dataset.image_size must be >= 1 and <= 4096, got 0.",
        ),
        (
            "--data.dataset ImageFolder --data.dataset.root x --data.dataset.image_size 1000000",
            "data.dataset.image_size must be >= 1 and <= 4096, got 1000000.",
        ),
        (
            "--data.dataset ImageFolder --data.dataset.root x --data.dataset.image_size big",
            "data.dataset.image_size: 'big' is none of int, null.",
        ),
        ("--data.dataset.test_fraction 1", "data.dataset.test_fraction must be > 0 and < 1, got 1.0."),
    ],
    "shared images": [
        (
            "--data.shared DeadLeavs",
            "data.shared: Unknown class 'DeadLeavs'. Did you mean 'DeadLeaves'? Choose one of: ",
        ),
        ("--data.shared FolderImages", "data.shared.root must be set."),
        ("--data.shared DeadLeaves --data.shared.count -1", "data.shared.count must be >= 1 and <= 10000000, got -1."),
        ("--data.shared DeadLeaves --data.shared.fraction 1.0", "data.shared.fraction must be >= 0 and < 1, got 1.0."),
        ("--data.shared DeadLeaves --data.shared.weight -1", "data.shared.weight must be >= 0, got -1.0."),
        ("--data.shared PublicImages --data.public_fraction 0", "data.shared: PublicImages needs a public split: "),
    ],
    "augmentation": [
        ("--data.augmentation.crop_padding -1", "data.augmentation.crop_padding must be >= 0 and <= 4096, got -1."),
        (
            "--data.augmentation.crop_padding 1000000000",
            "data.augmentation.crop_padding must be >= 0 and <= 4096, got 1000000000.",
        ),
        ("--data.augmentation.crop_padding 1e9", "data.augmentation.crop_padding: '1000000000.0' is not of type int."),
        ("--data.augmentation.flip maybe", "data.augmentation.flip: 'maybe' is not of type bool."),
        (
            "--data.augmentation.flp true",
            "data.augmentation: Unknown option 'flp'. Did you mean 'flip'? Choose one of: crop_padding, flip, mix, tra",
        ),
        (
            "--data.augmentation.transforms [RandAugmen]",
            "data.augmentation.transforms: Unknown class 'RandAugmen'. Did you mean 'RandAugment'? Choose one of: Aug",
        ),
        (
            "--data.augmentation.transforms RandAugment",
            "data.augmentation.transforms: 'RandAugment' is no list. Write it in brackets: [RandAugment].",
        ),
        (
            "--data.augmentation.transforms '[{class_path: RandomErasing, init_args: {p: 3}}]'",
            "data.augmentation.transforms[0]: `p` should be a floating point value in the interval [0.0, 1.0].",
        ),
        (
            "--data.augmentation.transforms '[{class_path: RandomCrop, init_args: {size: 4}}]'",
            "data.augmentation.transforms must keep an image's shape (1, 8, 8), but after RandomCrop there is uint8 (1",
        ),
        (
            "--data.augmentation.mix MixUpp",
            "data.augmentation.mix: Unknown class 'MixUpp'. Did you mean 'MixUp'? Choose one of: CutMix, MixUp.",
        ),
        (
            "--data.augmentation.mix.alpha 1",
            "data.augmentation.mix has no class yet. Set its class, then its options. Choose one of: CutMix, MixUp.",
        ),
        (
            "--data.augmentation.mix MixUp --data.augmentation.mix.alpha 0",
            "data.augmentation.mix.alpha must be >= 0.001 and <= 1000000.0, got 0.0.",
        ),
        (
            "--data.augmentation.mix CutMix --data.batch_size 1",
            "data.augmentation.mix mixes the images of a batch, so set batch_size to 2 or more, got 1.",
        ),
    ],
    "partitioner": [
        ("--data.partitioner.alpha -1", "data.partitioner.alpha must be >= 1e-100 and <= 1e+100, got -1.0."),
        ("--data.partitioner.alpha 0", "data.partitioner.alpha must be >= 1e-100 and <= 1e+100, got 0.0."),
        ("--data.partitioner.alpha inf", "data.partitioner.alpha: 'inf' is not of type float."),
        (
            "--data.partitioner.alfa 1",
            "data.partitioner: Unknown option 'alfa'. Did you mean 'alpha'? Choose one of: alpha, min_examples.",
        ),
        ("--data.partitioner.min_examples -1", "data.partitioner.min_examples must be an integer >= 0, got -1."),
        (
            "--data.partitioner.min_examples 5000",
            "data.partitioner.min_examples 5000 for each of 10 clients needs 50,000 images, but there are 1,004; use "
            "min_examples <= 100.\n",
        ),
        (
            "--data.partitioner.min_examples 500",
            "data.partitioner.min_examples 500 for each of 10 clients needs 5,000 images, but there are 1,004; use "
            "min_examples <= 100 or num_clients <= 2.\n",
        ),
        (
            "--data.partitioner Dirichlett",
            "data.partitioner: Unknown class 'Dirichlett'. Did you mean 'Dirichlet'? Choose one of: ByAttribute, Class",
        ),
        (
            "--data.partitioner ClassSpecific --data.partitioner.classes_per_client 99",
            "data.partitioner.classes_per_client must be at most the number of classes, 10, got 99.",
        ),
        (
            "--data.partitioner ClassSpecific --data.partitioner.classes_per_client 0",
            "data.partitioner.classes_per_client must be an integer >= 1, got 0.",
        ),
        (
            "--data.partitioner Shards --data.partitioner.shards_per_client 100000",
            "data.partitioner.shards_per_client must be at most the number of images, 1004, got 100000.",
        ),
        ("--data.partitioner Given", "data.partitioner.clients must be set."),
        ("--data.partitioner Given --data.partitioner.clients no.json", "data.partitioner: no.json does not exist"),
        ("--data.partitioner Given --data.partitioner.clients a.txt", "data.partitioner: a.txt: the file must end in "),
        (
            "--data.partitioner IID --data.partitioner.alpha 1",
            "data.partitioner: Unknown option 'alpha'. Choose one of: (none).",
        ),
    ],
    "model": [
        (
            "--model.student resnt8",
            f"model.student: Unknown student 'resnt8'. Did you mean 'resnet8'? {STUDENTS}",
        ),
        ("--model.student 123", f"model.student: Unknown student '123'. {STUDENTS}"),
        ("--model.student hf/foo", "model.student: No student checkpoint 'foo': not a folder in "),
        ("--model.student torch.nn.Linear", "model.student: in_features, out_features must be set."),
        ("--model.student timm.create_model", "model.student.model_name must be set."),
        (
            "--model.student_options.nrom group",
            "model.student_options: Unknown option of student 'cnn' 'nrom'. Did you mean 'norm'? Choose one of: norm.",
        ),
        (
            "--model.student resnet8 --model.student_options.width -4",
            "model.student_options.width must be >= 0.0625, got -4.",
        ),
        (
            "--model.student_options.norm grop",
            "model.student_options.norm: Unknown norm 'grop'. Did you mean 'group'? Choose one of: batch, group, none.",
        ),
        (
            "--model.student resnet8 --model.student_options.width 1e12",
            "model.student_options {'width': 1000000000000.0}",
        ),
        ("--model.student_options [1,2]", "model.student_options: '[1, 2]' is none of dict[str, Any], null."),
        ("--model.student_options '{num_classes: 3}'", "model.student_options: num_classes come from the data"),
        ("--model.optimzer SGD", "There is no option --model.optimzer. Did you mean --model.optimizer?"),
    ],
    "loss": [
        (
            "--model.loss KDD",
            "model.loss: Unknown class 'KDD'. Did you mean 'KD'? Choose one of: CenteredDKD, CenteredKD, DIST, DKD,",
        ),
        (
            "--model.loss torch.nn.CrossEntropyLoss",
            "model.loss: torch.nn.CrossEntropyLoss is no DistillationLoss. Choo",
        ),
        ("--model.loss.temperature 0", "model.loss.temperature must be > 0, got 0.0."),
        (
            "--model.loss.temperature autoo",
            "model.loss.temperature: Unknown value 'autoo'. Did you mean 'auto'? Choose one of: auto. A number is also",
        ),
        ("--model.loss.kd_weight nan", "model.loss.kd_weight: 'nan' is not of type float."),
        ("--model.loss.kd_weight .inf", "model.loss.kd_weight must be finite and >= 0, got inf."),
        ("--model.loss.ce_weight -1", "model.loss.ce_weight must be >= 0, got -1.0."),
        (
            "--model.loss.temperatur 1",
            "model.loss: Unknown option 'temperatur'. Did you mean 'temperature'? Choose one of: ce_weight, kd_weight,",
        ),
        (
            "--model.label_loss BalancdSoftmax",
            "model.label_loss: Unknown class 'BalancdSoftmax'. Did you mean 'BalancedSoftmax'? Choose one of: Balanced",
        ),
        (
            "--model.loss FrozenHead --model.label_loss LogitCalibration --model.label_loss.tau -1",
            "model.label_loss.tau must be >= 0, got -1.0.",
        ),
    ],
    "optimizer": [
        ("--model.optimizer.lr -1", "model.optimizer refuses its arguments: Invalid learning rate: -1.0"),
        ("--model.optimizer.lr fast", "model.optimizer.lr: 'fast' is none of float, Tensor."),
        (
            "--model.optimizer.momentumm 0.9",
            "model.optimizer: Unknown option 'momentumm'. Did you mean 'momentum'? Choose one of: dampening, ",
        ),
        (
            "--model.optimizer SGDD",
            "model.optimizer: Unknown class 'SGDD'. Did you mean 'SGD'? Choose one of: ASGD, Adadelta, Adagrad, Adam, ",
        ),
        (
            "--model.optimizer torch.nn.Linear",
            "model.optimizer: torch.nn.Linear is no Optimizer. Choose one of: ASGD, ",
        ),
        ("--model.optimizer torch.optim.LBFGS", "model.optimizer LBFGS cannot train a student"),
        ("--lr=0.1", "There is no option --lr. Did you mean --model.optimizer.lr?"),
    ],
    "teacher": [
        (
            "--model.teacher ''",
            "model.teacher is empty: give a short name, a folder or a hub id, or None for no teacher.",
        ),
        ("--model.teacher /no/such", "model.teacher: No teacher checkpoint '/no/such': the folder does not exist."),
        ("--model.teacher .", "model.teacher: No teacher checkpoint in folder '.': it has no config.json."),
        ("--model.teacher FeatureTeacher", "model.teacher.checkpoint must be set."),
        (
            "--model.teacher FeatureTeachr --model.teacher.checkpoint x",
            "model.teacher: Unknown class 'FeatureTeachr'. Did you mean 'FeatureTeacher'? Choose one of: ClassifierTea",
        ),
        (
            "--model.teacher FeatureTeacher --model.teacher.checkpoint ''",
            "model.teacher.checkpoint is empty: give a short name, a folder or a HuggingFace hub id.",
        ),
        (
            FEATURE + "--model.teacher.poolng cls",
            "model.teacher: Unknown option 'poolng'. Did you mean 'pooling'? Choose one of: checkpoint, dtype, head, ",
        ),
        (
            FEATURE + "--model.teacher.pooling max",
            "model.teacher.pooling: Unknown value 'max'. Did you mean 'mean'? Choose one of: auto, cls, cls+mean, mea",
        ),
        (
            FEATURE + "--model.teacher.dtype bf16",
            "model.teacher.dtype: Unknown value 'bf16'. Did you mean 'bfloat16'? Choose one of: auto, bfloat16, floa",
        ),
        (FEATURE + "--model.teacher.image_size 0", "model.teacher.image_size must be >= 1 and <= 4096, got 0."),
        (
            FEATURE + "--model.teacher.image_size 1000000",
            "model.teacher.image_size must be >= 1 and <= 4096, got 10000",
        ),
        (FEATURE + "--model.teacher.revision main", "model.teacher.revision 'main' is for a hub id, and "),
        (
            FEATURE.replace("FeatureTeacher", "ZeroShotTeacher"),
            "model.teacher: Checkpoint '",
        ),
        (
            """--model.teacher '{"class_path": "EnsembleTeacher", "init_args": {"teachers": []}}'""",
            "model.teacher.teachers is empty: an ensemble needs at least one teacher.",
        ),
        (
            """--model.teacher '{"class_path": "EnsembleTeacher", "init_args": {"teachers": ["digits-tiny", """
            """"digits-tiny"], "weights": [-1, 2]}}'""",
            "model.teacher.weights must be >= 0 and not all 0, got [-1.0, 2.0].",
        ),
    ],
    "head": [
        (
            FEATURE + "--model.teacher.head Rigde",
            "model.teacher.head: Unknown class 'Rigde'. Did you mean 'RidgeHead'? Choose one of: LinearHead, Protot",
        ),
        (
            FEATURE + "--model.teacher.head RidgeHead --model.teacher.head.regularisation 1",
            "model.teacher.head: Unknown option 'regularisation'. Did you mean 'regularization'? Choose one of: clas",
        ),
        (
            FEATURE + "--model.teacher.head RidgeHead --model.teacher.head.regularization -1",
            "model.teacher.head.regularization must be > 0, got -1.0.",
        ),
        (
            FEATURE + "--model.teacher.head LinearHead --model.teacher.head.rounds 0",
            "model.teacher.head.rounds must be >= 1, got 0.",
        ),
        (
            FEATURE
            + """--model.teacher.head '{"class_path": "RidgeHead", "init_args": {"privacy": {"epsilon": -1}}}'""",
            "model.teacher.head.privacy.epsilon must be > 0, got -1.0.",
        ),
        (
            "--model.teacher digits-tiny --model.teacher.head PrototypeHead",
            "model.teacher.head 'PrototypeHead': model.teacher has no class yet; set it first with --model.teacher CLA",
        ),
    ],
    "federation": [
        ("--federation.rounds 0", "federation.rounds must be >= 1, got 0."),
        ("--federation.rounds 1.5", "federation.rounds: '1.5' is not of type int."),
        ("--federation.rounds true", "federation.rounds: 'True' is not of type int."),
        ("--federation.round 3", "There is no option --federation.round. Did you mean --federation.rounds?"),
        (
            "--federaton.rounds 3",
            "Unknown section 'federaton'. Did you mean 'federation'? Choose one of: data, federatio",
        ),
        ("--rounds 3", "There is no option --rounds. Did you mean --federation.rounds?"),
        ("--federation.clients_per_round 0", "federation.clients_per_round must be >= 1, got 0."),
        ("--federation.clients_per_round 11", "federation.clients_per_round must be >= 1 and <= 10, got 11."),
        ("--federation.min_clients 0", "federation.min_clients must be >= 1, got 0."),
        ("--federation.min_clients 11", "federation.min_clients must be >= 1 and <= 10, got 11."),
        (
            "--federation.clients_per_round 2 --federation.min_clients 3",
            "federation.min_clients must be >= 1 and <= 2, got 3.",
        ),
        (
            "--federation.teaching consistant",
            "federation.teaching: Unknown value 'consistant'. Did you mean 'consistent'? Choose one of: consistent, fi",
        ),
        (
            "--federation.lr_schedule cosin",
            "federation.lr_schedule: Unknown class 'cosin'. Did you mean 'cosine'? Choose one of: CosineSchedule, ",
        ),
        ("--federation.lr_schedule StepSchedule", "federation.lr_schedule.milestones must be set."),
        (
            "--federation null",
            "federation: 'null' is no file with its options. Give them one by one, --federation.OPTION",
        ),
    ],
    "backend": [
        (
            "--federation.backend ProcesPool",
            "federation.backend: Unknown class 'ProcesPool'. Did you mean 'ProcessPool'? Choose one of: InProcess, ",
        ),
        (
            "--federation.backend null",
            "federation.backend: None is no Backend. Choose one of: InProcess, ProcessPool, ",
        ),
        ("--federation.backend.threads 0", "federation.backend.threads must be >= 1 and <= 1024, got 0."),
        (
            "--federation.backend.thread 2",
            "federation.backend: Unknown option 'thread'. Did you mean 'threads'? Choose one of: threads.",
        ),
        (
            "--federation.backend ProcessPool --federation.backend.workers 100000",
            "federation.backend.workers must be >= 1 and <= 1024, got 100000.",
        ),
        (
            "--federation.backend ProcessPool --federation.backend.client_timeout 0",
            "federation.backend.client_timeout must be > 0, got 0.0.",
        ),
        (
            "--federation.backend Stacked --federation.backend.clients 0",
            "federation.backend.clients must be >= 1, got 0.",
        ),
    ],
    "strategy": [
        (
            "--federation.strategy FedAvgg",
            "federation.strategy: Unknown class 'FedAvgg'. Did you mean 'FedAvg'? Choose ",
        ),
        (
            "--federation.strategy Combine",
            "federation.strategy: Unknown class 'Combine'. Did you mean 'Compose'? Choose ",
        ),
        (
            "--federation.strategy aut",
            "federation.strategy: Unknown class 'aut'. Did you mean 'auto'? Choose one of: Clo",
        ),
        ("--federation.strategy 42", f"federation.strategy: Unknown class '42'. {STRATEGIES}"),
        ("--federation.strategy torch.nn.Linear", f"federation.strategy: torch.nn.Linear is no Strategy. {STRATEGIES}"),
        (
            "--federation.strategy.server_lr 0.1",
            "federation.strategy has no class yet, it is 'auto'; set it before its options, with --federation.strategy",
        ),
        (
            "--federation.strategy.proximal_mu 0.1 --federation.strategy MultiKrum",  # whatever their order
            "federation.strategy: Unknown option 'proximal_mu'. Choose one of: num_byzantine, num_selected.",
        ),
        ("--federation.strategy Compose", "federation.strategy.strategies must be set."),
        (
            """--federation.strategy '{"class_path": "Compose", "init_args": {"strategies": []}}'""",
            "federation.strategy.strategies is empty: Compose needs at least one.",
        ),
        (
            """--federation.strategy '{"class_path": "Compose", "init_args": {"strategies": [{"class_path": """
            """"SCAFOLD"}]}}'""",
            "federation.strategy.strategies: Unknown class 'SCAFOLD'. Did you mean 'SCAFFOLD'? Choose one of: ",
        ),
        (
            """--federation.strategy '{"class_path": "Compose", "init_args": {"strategies": [{"class_path": """
            """"FedProx"}, {"class_path": "FedProx", "init_args": {"proximal_mu": -1}}]}}'""",
            "federation.strategy.strategies[1].proximal_mu must be >= 0, got -1.0.",
        ),
        (
            """--federation.strategy '{"class_path": "FedProx", "init_args": {"server_lr": 1}}'""",
            "federation.strategy: Unknown option 'server_lr'. Choose one of: proximal_mu.",
        ),
        (
            "--federation.strategy SCAFFOLD --federation.strategy.option 7",
            "federation.strategy.option: Unknown value '7'. Choose one of: I, II.",
        ),
        (
            "--federation.strategy Krum --federation.strategy.num_byzantine 50",
            "federation.strategy.num_byzantine 50 needs a cohort of more than 102 clients, got 10.",
        ),
    ],
    "options of strategies": [
        (f"--federation.strategy {name} --federation.strategy.{option} {value}", f"federation.strategy.{option} {said}")
        for name, option, value, said in (
            ("FedProx", "proximal_mu", "-1", "must be >= 0, got -1.0."),
            ("FedDyn", "regularization", "0", "must be > 0, got 0.0."),
            ("FedGKD", "num_models", "0", "must be >= 1, got 0."),
            ("FedNTD", "not_true_weight", "-1", "must be >= 0, got -1.0."),
            ("MOON", "temperature", "0", "must be > 0, got 0.0."),
            ("ClosedFormHead", "grid", "0", "must be >= 1, got 0."),
            ("ServerDistillation", "epochs", "-1", "must be >= 0, got -1."),
            ("ServerDistillation", "temperature", "-1", "must be > 0, got -1.0."),
            ("FeatureStart", "dim", "0", "must be >= 1, got 0."),
            ("TrimmedMean", "trim", "0.9", "must be >= 0 and < 0.5, got 0.9."),
            ("GeometricMedian", "smoothing", "0", "must be > 0, got 0.0."),
            ("MultiKrum", "num_selected", "0", "must be >= 1, got 0."),
            ("NormClipping", "max_norm", "-1", "must be > 0, got -1.0."),
            ("FedAdam", "beta2", "1", "must be >= 0 and < 1, got 1.0."),
            ("FedAdagrad", "server_lr", "-1", "must be > 0, got -1.0."),
            ("FedYogi", "tau", "0", "must be > 0, got 0.0."),
            ("FedAvgM", "momentum", "1", "must be >= 0 and < 1, got 1.0."),
            ("DPFedAvg", "noise_multiplier", "-1", "must be >= 0, got -1.0."),
            ("DPFedAvg", "delta", "1", "must be > 0 and < 1, got 1.0."),
        )
    ],
    "trainer": [
        (
            "--trainer.max_epochs -1",
            "trainer.max_epochs: -1 never ends on a client; give a number, or max_steps or max_",
        ),
        ("--trainer.max_epochs 0", "trainer.max_epochs 0 trains no client: give a number above."),
        ("--trainer.max_epochs -5", "trainer.max_epochs must be >= -1, got -5."),
        ("--trainer.max_epochs x", "trainer.max_epochs: 'x' is none of int, null."),
        ("--trainer.max_epoch 1", "There is no option --trainer.max_epoch. Did you mean --trainer.max_epochs?"),
        ("--trainer.max_steps 0", "trainer.max_steps 0 trains no client: give a number above."),
        ("--trainer.max_time xx", "trainer.max_time 'xx': Lightning's Trainer refuses it: "),
        ("--trainer.limit_train_batches 0", "trainer.limit_train_batches must be > 0, got 0."),
        ("--trainer.limit_train_batches 1.5", "trainer.limit_train_batches 1.5: Lightning's Trainer refuses it: "),
        ("--trainer.gradient_clip_val -1", "trainer.gradient_clip_val must be >= 0, got -1."),
        ("--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches must be >= 1, got 0."),
        (
            "--trainer.precision bf17",
            "trainer.precision: Unknown value 'bf17'. Did you mean 'bf16'? Choose one of: 16, ",
        ),
        ("--trainer.precision transformer-engine", "trainer.precision 'transformer-engine': Lightning's Trainer refu"),
        (
            "--trainer.accelerator abacus",
            "trainer.accelerator 'abacus': Lightning's Trainer refuses it: You selected an",
        ),
        (
            "--trainer.devices 0",
            "trainer.devices '0': Lightning's Trainer refuses it: `Trainer(devices='0')` value is n",
        ),
        ("--trainer.devices 3", "trainer.devices: each client trains on one device, got 3."),
        (
            "--trainer.strategy zzz",
            "trainer.strategy 'zzz': Lightning's Trainer refuses it: You selected an invalid st",
        ),
        ("--trainer.fast_dev_run maybe", "trainer.fast_dev_run: 'maybe' is none of int, bool."),
        ("--trainer.barebones true", "trainer.barebones: true logs nothing"),
        (
            "--trainer.callbacks+=EarlyStoping",
            "trainer.callbacks: Unknown class 'EarlyStoping'. Did you mean 'EarlyStopping'? Choose one of: Backbone",
        ),
        (
            "--trainer.logger CSVLoger",
            "trainer.logger: Unknown class 'CSVLoger'. Did you mean 'CSVLogger'? Choose one of",
        ),
        ("--trainer.logger TensorBoardLogger", "trainer.logger.save_dir must be set."),
    ],
    "seed and paths": [
        ("--seed_everything -1", "seed_everything must be >= 0 and <= 4294967295, got -1."),
        ("--seed_everything 4294967296", "seed_everything must be >= 0 and <= 4294967295, got 4294967296."),
        ("--seed_everything true", "seed_everything: 'True' is not of type int."),
        ("--run_dir ''", "run_dir is empty: give a folder, or leave it out for the next free runs/version_N."),
        (f"--run_dir {ROOT}/README.md", f"run_dir '{ROOT}/README.md' cannot be made: "),
        (f"--run_dir {'a' * 300}", f"run_dir '{'a' * 300}' cannot be made: File name too long."),
        ("--ckpt_path ''", "ckpt_path is empty: give 'last' or the path of a round checkpoint, or leave it out."),
        ("--ckpt_path lst", "ckpt_path: No round checkpoint at 'lst'; ckpt_path takes 'last' or the path of one."),
        (f"--ckpt_path {ROOT}/README.md", f"ckpt_path: '{ROOT}/README.md' is damaged, or fedkd did not write it"),
    ],
}

YAML = [  # (what stands in the quickstart, what stands there instead, the error)
    ("num_clients: 10", "num_cliets: 3", "There is no option --data.num_cliets. Did you mean --data.num_clients?"),
    ("num_clients: 10", "num_clients: [3]", "data.num_clients: '[3]' is none of int, null."),
    ("rounds: 10", "rounds: null", "federation.rounds must be an integer, got None."),
    ("rounds: 10", "round: 10", "There is no option --federation.round. Did you mean --federation.rounds?"),
    (
        "federation:",
        "federaton:",
        "Unknown section 'federaton'. Did you mean 'federation'? Choose one of: data, federat",
    ),
    ("alpha: 0.1", "alpha: abc", "data.partitioner.alpha: 'abc' is not of type float."),
    (
        "alpha: 0.1",
        "alpah: 0.1",
        "data.partitioner: Unknown option 'alpah'. Did you mean 'alpha'? Choose one of: alpha, ",
    ),
    (
        "class_path: Dirichlet",
        "classpath: Dirichlet",
        "data.partitioner: Unknown key 'classpath'. Did you mean 'class_pat",
    ),
    (
        "init_args:\n      alpha",
        "init_arg:\n      alpha",
        "data.partitioner: Unknown key 'init_arg'. Did you mean 'init_arg",
    ),
    (
        "class_path: torch.optim.SGD",
        "class_path: torch.optim.SGD\n    lr: 3",
        "model.optimizer: the option 'lr' stands beside class_path. Put it below init_args.",
    ),
    (
        "dataset: Digits",
        "dataset: {class_path: ImageFolder, init_args: tiny}",
        "data.dataset.init_args must be a mapping of the class's options, got 'tiny'.",
    ),
    ("student: cnn", "student: [cnn]", "model.student: \"['cnn']\" is none of Module, str."),
    ("lr: 0.02", "learning_rate: 0.02", "model.optimizer: Unknown option 'learning_rate'. Choose one of: dampening, "),
    ("lr: 0.02", "lr: 1e-2x", "model.optimizer.lr: '1e-2x' is none of float, Tensor."),
    ("trainer:\n  max_epochs: 5\n  accelerator: cpu", "trainer: 5", "trainer must be a mapping of its options, got 5."),
    (
        "seed_everything: 1\n",
        "data: {num_clients: 2}\n",
        "The configuration 'bad.yaml' is wrong in line 6: 'data' stands",
    ),
    (
        "seed_everything: 1\n",
        "x: !!python/object/apply:os.system ['touch x']\n",
        "The configuration 'bad.yaml' is wrong i",
    ),
    ("seed_everything: 1\n", "seed_everything: {\n", "The configuration 'bad.yaml' is wrong in line "),
]

FILES = [
    (b"", "The configuration 'bad.yaml' must hold sections such as data: and model:, got None."),
    (b"- a\n- b\n", "The configuration 'bad.yaml' must hold sections such as data: and model:, got ['a', 'b']."),
    (b"hello\n", "The configuration 'bad.yaml' must hold sections such as data: and model:, got 'hello'."),
    (bytes(range(256)), "The configuration 'bad.yaml' is not text."),
    (
        b"data:\n\tnum_clients: 3\n",
        "The configuration 'bad.yaml' is wrong in line 2: found character '\\t' that cannot",
    ),
]

COMMANDS = [
    ("", 'expected "subcommand" to be one of {fit,check,test,predict,export, ...}'),
    (
        "compar grid.yaml",
        "Unknown subcommand 'compar'. Did you mean 'compare'? Choose one of: check, compare, completion, export, fit, ",
    ),
    ("fit run", "'run' has no option before it. A configuration is a YAML file: fedkd fit RUN.yaml"),
    ("fit run.yaml", "config: File does not exist: "),
    ("fit --config no.yaml", "config: File does not exist: "),
    ("fit --config .", "config: Path is not a file: "),
    ("fit --config", "argument -c/--config: expected one argument"),
    ("fit --print_config=zzz", 'Invalid option "zzz" for --print_config'),
    ("fit --nosuch 1", "There is no option --nosuch."),
    ("test", "The run directory is missing: fedkd test RUN_DIR."),
    ("test no/such", "No run at 'no/such': there is no student in it."),
    ("predict no/such", "No run at 'no/such': there is no student in it."),
    ("partition --kind heap", "kind: Unknown value 'heap'. Did you mean 'heat'? Choose one of: bubble, heat."),
    ("partition --output x.pgn", "output: Unknown plot format 'pgn'. Did you mean 'png'? Choose one of: "),
    (f"partition --output {ROOT}/README.md/x.png", f"output: '{ROOT}/README.md/x.png' cannot be written: "),
    ("teachers digits-tny", "No teacher checkpoint 'digits-tny': not a folder in "),
    ("teachers --options.image_size 9", "options need a teacher's name: fedkd teachers NAME --options.image_size 98."),
    ("compare grid.yaml", "compare: the following arguments are required: --out."),
    ("compare no.yaml --out x", "There is no grid at 'no.yaml'."),
    ("completion bash", "'bash' has no option before it."),
    ("fit --data.num_clients 3 compare", "'compare' has no option before it."),
]


@pytest.fixture(scope="module", autouse=True)
def _classes_listed_once() -> Iterator[None]:
    """List the subclasses of a class once: the parser does it for every value, for 3,000 networks."""
    listed = functools.cache(jsonargparse._typehints.get_all_subclass_paths)
    subclasses = errors.subclasses

    def not_of_tests(base: type) -> list[type]:
        """Leave out what other tests in this process define: it can be chosen too."""
        return [each for each in subclasses(base) if "." in each.__module__]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "subclasses", not_of_tests)
        patch.setattr(jsonargparse._typehints, "get_all_subclass_paths", listed)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def refused(tmp_path: Path, arguments: list[str]) -> str:
    """Run a command that must fail in one line, before it writes anything; return the line without its beginning."""
    before = sorted(tmp_path.rglob("*"))
    done = fedkd(*arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    *notices, line = done.stderr.removesuffix("\n").split("\n")
    assert len(notices) <= 2, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    start = "fedkd: error: "
    assert line.startswith(start)
    return line.removeprefix(start) + "\n"


@pytest.mark.parametrize("section", WRONG)
def test_a_wrong_value_is_one_clear_line(tmp_path: Path, section: str) -> None:
    for wrong, message in WRONG[section]:
        arguments = shlex.split(wrong)
        run_dir = [] if "--run_dir" in arguments else ["--run_dir", "run"]
        said = refused(tmp_path, ["fit", *QUICK, *run_dir, *arguments])
        assert said.startswith(message), wrong


@pytest.mark.parametrize(("right", "wrong", "message"), YAML)
def test_a_mistake_in_the_yaml_is_one_clear_line(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    text = (ROOT / "examples" / "quickstart.yaml").read_text()
    assert right in text
    (tmp_path / "bad.yaml").write_text(text.replace(right, wrong, 1))
    assert refused(tmp_path, ["fit", "--config", "bad.yaml", "--run_dir", "run"]).startswith(message)


@pytest.mark.parametrize(("content", "message"), FILES)
def test_a_file_that_is_no_configuration_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    assert refused(tmp_path, ["fit", "bad.yaml", "--run_dir", "run"]).startswith(message)


def test_a_wrong_command_is_one_clear_line(tmp_path: Path) -> None:
    for command, message in COMMANDS:
        assert refused(tmp_path, shlex.split(command)).startswith(message), command


def test_the_table_covers_all_sections() -> None:
    assert sum(map(len, WRONG.values())) + len(YAML) + len(FILES) + len(COMMANDS) >= 220
    given = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    options = " ".join(wrong for cases in WRONG.values() for wrong, _ in cases)
    assert [section for section in given if f"--{section}" not in options] == []


def test_the_parser_is_of_the_version_whose_messages_are_rewritten() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = (Requirement(each) for each in project["dependencies"] if each.startswith("jsonargparse"))
    installed = Version(version("jsonargparse"))
    assert installed in needed.specifier
    following = f"{installed.major}.{installed.minor + 1}"
    assert following not in needed.specifier
    assert f"<{following}" in str(needed.specifier)
