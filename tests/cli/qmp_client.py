# SPDX-License-Identifier: MIT
"""A client of the control socket."""
import json
import socket


class Qmp:
    """A client of the control socket that speaks the protocol itself."""

    def __init__(self, path, negotiate=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")
        self.events = []                 # that came while an answer was waited for
        self.greeting = self.receive()
        if negotiate:
            assert self.ask("qmp_capabilities") == {"return": {}}

    def receive(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def send(self, text):
        self.socket.sendall(text if isinstance(text, bytes) else text.encode())

    def ask(self, command, **arguments):
        message = {"execute": command}
        if arguments:
            message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.send(json.dumps(message) + "\n")
        while True:
            answer = self.receive()
            if not answer or "event" not in answer:
                return answer
            self.events.append(answer)

    def close(self):
        self.file.close()
        self.socket.close()
