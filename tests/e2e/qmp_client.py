"""A client of QMP that is not qvm's own."""

import json
import select
import time

import vm

SECONDS = 30


class Client:
    def __init__(self, path, negotiate=True):
        self.socket = vm.connected(path)
        self.socket.settimeout(SECONDS)
        self.buffer = b""
        self.events = []
        if negotiate:
            self.greeting = self.receive()
            self.execute("qmp_capabilities")

    def send(self, text):
        self.socket.sendall(text if isinstance(text, bytes) else text.encode())

    def receive(self):
        """The next line, as JSON; nothing at the end."""
        while b"\n" not in self.buffer:
            data = self.socket.recv(65536)
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def answer(self):
        """The next line that is no event."""
        while (line := self.receive()) is not None and "event" in line:
            self.events.append(line)
        return line

    def request(self, command, arguments=None, **more):
        request = {"execute": command, **more}
        if arguments is not None:
            request["arguments"] = arguments
        self.send(json.dumps(request) + "\n")

    def execute(self, command, arguments=None, **more):
        self.request(command, arguments, **more)
        return self.answer()

    def event(self, name, seconds=SECONDS):
        """Waits for an event of that name."""
        deadline = time.monotonic() + seconds
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name:
                    del self.events[:i + 1]
                    return event
            if time.monotonic() > deadline:
                raise AssertionError(f"no event {name} within {seconds} s")
            line = self.receive()
            if line is None:
                raise AssertionError(f"the end came before the event {name}")
            self.events.append(line)

    def is_closed(self, seconds=SECONDS):
        """Whether the other side closes, once all that it sent was read."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if select.select([self.socket], [], [], 0.1)[0] and not self.socket.recv(65536):
                    return True
            except ConnectionResetError:
                return True
        return False

    def close(self):
        self.socket.close()
