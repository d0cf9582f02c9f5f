# SPDX-License-Identifier: MIT
"""A client of the control socket."""
import json
import socket


class Qmp:
    """A client of the control socket that speaks the protocol itself."""

    def __init__(self, path, negotiate=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)           # nothing that a test asks takes long; a busy machine may
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")
        self.events = []                 # that came while an answer was waited for
        self.greeting = self.receive()
        if negotiate:
            answer = self.ask("qmp_capabilities")
            while answer and "QMP" in answer and self.is_peer():         # it greets again whoever comes before its monitor is attached to the socket
                answer = self.receive()
            assert answer == {"return": {}}, (self.greeting, answer)

    def is_peer(self):
        return self.greeting["QMP"]["version"]["package"].startswith("Debian")

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

    def ok(self, command, **arguments):
        """What it returned."""
        answer = self.ask(command, **arguments)
        assert answer and "return" in answer, (command, arguments, answer)
        return answer["return"]

    def refused(self, command, **arguments):
        """The sentence that says why."""
        answer = self.ask(command, **arguments)
        assert answer and "error" in answer, (command, arguments, answer)
        return answer["error"]["desc"]

    def wait(self, *names, **has):
        """The next event of one of these names, and with these members of its data; others stay in `events`."""
        while True:
            for event in self.events:
                if event["event"] in names and all(event["data"].get(k) == v for k, v in has.items()):
                    self.events.remove(event)
                    return event
            self.events.append(self.receive())

    def close(self):
        self.file.close()
        self.socket.close()
