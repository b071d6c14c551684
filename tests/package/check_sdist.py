"""Says which files of the repository a source distribution lacks: python check_sdist.py FILE.tar.gz."""

import subprocess
import sys
import tarfile


def main(path: str) -> str | None:
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    missing = [name for name in listed.split("\0") if name and name not in packed]
    return f"{path} lacks {len(missing)} files, such as {missing[:5]}: name them in MANIFEST.in" if missing else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
