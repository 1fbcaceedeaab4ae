"""A folder for ``--data`` out of an npm package of emoji pictures: in colour, with classes that nobody draws.

npm pack emoji-datasource-google@16.0.0
python -m benchmarks.evidence.emoji emoji-datasource-google-16.0.0.tgz DIR
python -m benchmarks.evidence --data DIR

About 1,900 pictures of 64 x 64 pixels in nine classes. Variants in skin tone are left out: they would stand on both
sides of the split.
"""

import argparse
import json
import tarfile
from collections import Counter
from pathlib import Path

_LEFT_OUT = "Component"  # bare skin tones: not pictures of anything


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.evidence.emoji", description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="the .tgz that npm pack emoji-datasource-google writes")
    parser.add_argument("folder", type=Path, help="where one folder per class goes; it must not exist")
    args = parser.parse_args(argv)
    if not args.package.is_file():
        parser.error(f"package: got {args.package}, wanted a file")
    if args.folder.exists():
        parser.error(f"folder: got {args.folder}, which exists; wanted a new one")
    for name, count in sorted(unpack(args.package, args.folder).items()):
        print(f"{count:5d}  {name}")


def unpack(package: Path, folder: Path) -> Counter[str]:
    """The number of pictures by class."""
    with tarfile.open(package) as archive:
        listing = _read(archive, "package/emoji.json")
        assert listing is not None, "no package/emoji.json in it"
        counts: Counter[str] = Counter()
        pictures = next(
            name for name in archive.getnames() if name.startswith("package/img/") and name.endswith(".png")
        )
        where = pictures.rpartition("/")[0]
        for emoji in json.loads(listing):
            category = emoji["category"]
            picture = _read(archive, f"{where}/{emoji['image']}")
            if category == _LEFT_OUT or picture is None:  # some vendors lack some pictures
                continue
            file = folder / category.lower().replace(" & ", "-") / Path(emoji["image"]).name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture)
            counts[file.parent.name] += 1
    return counts


def _read(archive: tarfile.TarFile, name: str) -> bytes | None:
    try:
        file = archive.extractfile(name)
    except KeyError:
        return None
    return None if file is None else file.read()


if __name__ == "__main__":
    main()
