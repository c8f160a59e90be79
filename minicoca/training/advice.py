"""stub"""


class Adviser:
    def __init__(self, config, pairs, log):
        self.log, self.standing = log, {}

    def write(self, record):
        self.log.write(record)

    def news(self, step):
        return []
