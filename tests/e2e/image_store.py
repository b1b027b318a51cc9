"""The store of images, looked at from outside: what is in it, and whether it is valid."""

import hashlib
import json
import shutil


class Store:
    def __init__(self, host):
        self.path = host.data / "image"

    def files(self, kind):
        directory = self.path / kind
        return {path.name: path for path in sorted(directory.iterdir())} if directory.exists() else {}

    def names(self):
        """{name: record}"""
        return {name: json.loads(path.read_text()) for name, path in self.files("name").items()}

    def problems(self):
        """What is wrong with it, whoever was killed when: a list of lines."""
        found = []
        blobs = self.files("blob")
        for digest, path in blobs.items():
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                found.append(f"blob {digest} is another file")
            if path.stat().st_mode & 0o777 != 0o444:
                found.append(f"blob {digest} can be written to")
        for name, path in self.files("name").items():
            try:
                record = json.loads(path.read_text())
            except json.JSONDecodeError as error:
                found.append(f"name {name}: {error}")
                continue
            blob = blobs.get(record["digest"])
            if not blob:
                found.append(f"name {name} stands for nothing")
            elif blob.stat().st_size != record["size"]:
                found.append(f"name {name} has another size")
        found += [f"unknown: {path.name}" for path in (self.path.iterdir() if self.path.exists() else [])
                  if path.name not in ("blob", "name", "draft", "download", "lock")]
        return found

    def orphans(self):
        """What belongs to no name, and is of no use to anybody."""
        used = {record["digest"] for record in self.names().values()}
        return [f"{kind}/{name}" for kind in ("blob", "draft", "download") for name in self.files(kind)
                if not (kind == "blob" and name in used)]

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)
