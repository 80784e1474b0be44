"""What each data set is, where its files come from, and their digests where the source or its field agrees on them.

A file without a known digest has its sha256 recorded when it is first fetched, and compared from then on.
"""

from __future__ import annotations

from dataclasses import dataclass

from spiketrain.data.cifar import CIFAR10_CLASSES


@dataclass(frozen=True)
class Remote:
    """A file of a data set. `url` is empty where it has to be fetched by hand; `folder` is what an archive unpacks to,
    its own name without the suffix unless given."""

    name: str
    url: str = ""
    md5: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Entry:
    """`training` is the number of its training samples, `instructions` say how to get what cannot be downloaded, `unpack` which archives no loader reads in part."""

    title: str
    samples: str
    licence: str
    page: str
    training: int
    files: tuple[Remote, ...] = ()
    instructions: str = ""
    unpack: tuple[str, ...] = ()


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_FIGSHARE = "https://ndownloader.figshare.com/files/"

_CIFAR10_DVS = (
    ("7712788", "0afd5c4bf9ae06af762a77b180354fdd"),
    ("7712791", "8438dfeba3bc970c94962d995b1b9bdd"),
    ("7712794", "a9c207c91c55b9dc2002dc21c684d785"),
    ("7712812", "52c63c677c2b15fa5146a8daf4d56687"),
    ("7712815", "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    ("7712818", "f379ebdf6703d16e0a690782e62639c3"),
    ("7712842", "cad6ed91214b1c7388a5f6ee56d08803"),
    ("7712851", "e7cbbf77bec584ffbf913f00e682782a"),
    ("7712836", "41c7bd7d6b251be82557c6cce9a7d5c9"),
    ("7712839", "89f3922fd147d9aeff89e76a2b0b70a7"),
)


def _idx(base: str, *digests: str) -> tuple[Remote, ...]:
    names = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    return tuple(
        Remote(name, base + name, digest) for name, digest in zip(names, digests, strict=True)
    )


CATALOGUE: dict[str, Entry] = {
    "mnist": Entry(
        "MNIST, handwritten digits",
        "60,000 + 10,000 pictures, 28x28",
        "see its page",
        "http://yann.lecun.com/exdb/mnist/",
        60_000,
        _idx(
            _MNIST,
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": Entry(
        "Fashion-MNIST, pictures of clothes",
        "60,000 + 10,000 pictures, 28x28",
        "MIT",
        "https://github.com/zalandoresearch/fashion-mnist",
        60_000,
        _idx(
            _FASHION,
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        "On Debian it is in the package dataset-fashion-mnist.",
    ),
    "cifar10": Entry(
        "CIFAR-10",
        "50,000 + 10,000 pictures, 32x32",
        "see its page",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        50_000,
        (
            Remote(
                "cifar-10-python.tar.gz",
                f"{_CIFAR}cifar-10-python.tar.gz",
                "c58f30108f718f92721af3b95e74349a",
                "cifar-10-batches-py",
            ),
        ),
    ),
    "cifar100": Entry(
        "CIFAR-100",
        "50,000 + 10,000 pictures, 32x32",
        "see its page",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        50_000,
        (
            Remote(
                "cifar-100-python.tar.gz",
                f"{_CIFAR}cifar-100-python.tar.gz",
                "eb9058c3a382ffc7106e4002c42a8d85",
            ),
        ),
    ),
    "tiny-imagenet": Entry(
        "Tiny-ImageNet",
        "100,000 + 10,000 pictures of 200 classes, 64x64",
        "ImageNet's terms",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        100_000,
        (
            Remote(
                "tiny-imagenet-200.zip",
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "90528d7ca1a48142e341f4ef8d21d0de",
            ),
        ),
    ),
    "imagenet": Entry(
        "ImageNet, ILSVRC 2012",
        "1,281,167 + 50,000 pictures of 1,000 classes",
        "ImageNet's terms, which have to be agreed to",
        "https://www.image-net.org/download.php",
        1_281_167,
        instructions=(
            "Agree to its terms at https://www.image-net.org/download.php, or take part in its competition at "
            "https://www.kaggle.com/c/imagenet-object-localization-challenge, and unpack it so that there are folders "
            "train/n01440764 ... and val/n01440764 ..., or ILSVRC/Data/CLS-LOC with LOC_val_solution.csv beside ILSVRC."
        ),
    ),
    "nmnist": Entry(
        "N-MNIST, MNIST seen by an event camera",
        "60,000 + 10,000 recordings, 34x34, 0.3 s",
        "CC BY-SA 4.0",
        "https://www.garrickorchard.com/datasets/n-mnist",
        60_000,
        (
            Remote("Train.zip", md5="20959b8e626244a1b502305a9e6e2031"),
            Remote("Test.zip", md5="69ca8762b2fe404d9b9bad1103e97832"),
        ),
        "Follow the link to the files on https://www.garrickorchard.com/datasets/n-mnist: Train.zip and Test.zip.",
    ),
    "nmnist-small": Entry(
        "1,000 + 100 digits of N-MNIST",
        "1,100 recordings, 34x34, 0.3 s",
        "CC BY-SA 4.0 (N-MNIST)",
        "https://github.com/bamsumit/slayerPytorch",
        1_000,
        (Remote("NMNISTsmall.tar.xz"),),
        "NMNISTsmall.tar.xz came with SLAYER's examples (bamsumit/slayerPytorch, in its history).",
    ),
    "cifar10-dvs": Entry(
        "CIFAR10-DVS, pictures of CIFAR-10 seen by an event camera",
        "10,000 recordings, 128x128, some 1.3 s; no split of its own",
        "CC BY 4.0",
        "https://doi.org/10.6084/m9.figshare.4724671",
        9_000,
        tuple(
            Remote(f"{name}.zip", _FIGSHARE + number, digest)
            for name, (number, digest) in zip(CIFAR10_CLASSES, _CIFAR10_DVS, strict=True)
        ),
    ),
    "dvs-gesture": Entry(
        "DVS128 Gesture",
        "11 gestures of 29 people, 122 recordings, 128x128",
        "CC BY 4.0, which has to be agreed to",
        "https://research.ibm.com/interactive/dvsgesture/",
        1_176,
        (Remote("DvsGesture.tar.gz", md5="8a5c71fb11e24e5ca5b11866ca6c00a1"),),
        "Agree to its licence at https://research.ibm.com/interactive/dvsgesture/ and get DvsGesture.tar.gz.",
        ("DvsGesture.tar.gz",),
    ),
}
