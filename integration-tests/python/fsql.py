"""The few Flight SQL messages that pyarrow.flight has no words for, written by hand.

Protobuf needs only two wire types here: varint and length-delimited (sfixed64 in session options is the exception).
"""

import struct

import pyarrow as pa
from pyarrow import flight

TYPE = "type.googleapis.com/arrow.flight.protocol.sql."


def varint(value):
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def field(number, value):
    """One protobuf field. None is absent, a list is repeated; str and bytes are length-delimited, int and bool varints."""
    if value is None:
        return b""
    if isinstance(value, list):
        return b"".join(field(number, item) for item in value)
    if isinstance(value, (bool, int)):
        return varint(number << 3) + varint(int(value))
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(**fields):
    """message(f1=..., f3=...): fields by number."""
    return b"".join(field(int(name[1:]), value) for name, value in fields.items())


def parse(data):
    """{field number: [values]} of one message; varints as int, the rest as bytes."""
    data, at, out = bytes(data), 0, {}

    def read():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        tag = read()
        match tag & 7:
            case 0:
                value = read()
            case 1:
                value, at = data[at : at + 8], at + 8
            case 2:
                size = read()
                value, at = data[at : at + size], at + size
            case 5:
                value, at = data[at : at + 4], at + 4
            case kind:
                raise ValueError(f"wire type {kind}")
        out.setdefault(tag >> 3, []).append(value)
    return out


def any_(name, **fields):
    return message(f1=TYPE + name, f2=message(**fields))


def unpack(data):
    """The message inside an Any."""
    return parse(parse(data).get(2, [b""])[0])


def command(name, **fields):
    return flight.FlightDescriptor.for_command(any_(name, **fields))


def statement(sql):
    return command("CommandStatementQuery", f1=sql)


def schema(data):
    return pa.ipc.read_schema(pa.py_buffer(data)) if data else None


def action(client, kind, body=b"", options=None):
    return [result.body.to_pybytes() for result in client.do_action(flight.Action(kind, body), options)]


def fetch(client, descriptor, options=None):
    """The whole answer as a table, checked against what FlightInfo announced."""
    info = client.get_flight_info(descriptor, options)
    tables = [client.do_get(endpoint.ticket, options).read_all() for endpoint in info.endpoints]
    for table in tables:
        assert table.schema.equals(info.schema, check_metadata=True), f"announced\n{info.schema}\nsent\n{table.schema}"
    return pa.concat_tables(tables) if tables else info.schema.empty_table()


def query(client, sql, options=None):
    return fetch(client, statement(sql), options)


class Prepared:
    """CreatePreparedStatement, bind by DoPut, run, close."""

    def __init__(self, client, sql, options=None):
        self.client, self.options = client, options
        (body,) = action(client, "CreatePreparedStatement", any_("ActionCreatePreparedStatementRequest", f1=sql), options)
        result = unpack(body)
        self.handle = result[1][0]
        self.dataset_schema = schema(result.get(2, [b""])[0])
        self.parameter_schema = schema(result.get(3, [b""])[0])

    def descriptor(self):
        return command("CommandPreparedStatementQuery", f1=self.handle)

    def bind(self, table):
        writer, reader = self.client.do_put(self.descriptor(), table.schema, self.options)
        with writer:
            writer.write_table(table)
            writer.done_writing()
            reply = reader.read()
        assert reply is not None, "no PutResult for bound parameters"
        self.handle = parse(reply.to_pybytes())[1][0]
        return self

    def fetch(self):
        return fetch(self.client, self.descriptor(), self.options)

    def close(self):
        action(self.client, "ClosePreparedStatement", any_("ActionClosePreparedStatementRequest", f1=self.handle), self.options)


# CancelFlightInfo, renewal and sessions are core Flight: raw messages, not Any.
CANCELLED, CANCELLING, NOT_CANCELLABLE = 1, 2, 3


def cancel(client, info, options=None):
    (body,) = action(client, "CancelFlightInfo", field(1, info.serialize()), options)
    return parse(body).get(1, [0])[0]


def session_value(value):
    if value is None:
        return b""
    if isinstance(value, bool):
        return field(2, value)
    if isinstance(value, int):
        return varint(3 << 3 | 1) + struct.pack("<q", value)
    if isinstance(value, float):
        return varint(4 << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, list):
        return field(5, field(1, value))
    return varint(1 << 3 | 2) + varint(len(value.encode())) + value.encode()


def set_session(client, options, **values):
    """Names the server refused, with the code of each (1 unknown name, 2 bad value, 3 error)."""
    body = b"".join(field(1, message(f1=name, f2=session_value(value))) for name, value in values.items())
    (reply,) = action(client, "SetSessionOptions", body, options)
    refused = [parse(entry) for entry in parse(reply).get(1, [])]
    return {entry[1][0].decode(): parse(entry.get(2, [b""])[0]).get(1, [0])[0] for entry in refused}


def get_session(client, options):
    (reply,) = action(client, "GetSessionOptions", b"", options)
    out = {}
    for entry in map(parse, parse(reply).get(1, [])):
        value = parse(entry.get(2, [b""])[0])
        if 1 in value:
            out[entry[1][0].decode()] = value[1][0].decode()
        elif 2 in value:
            out[entry[1][0].decode()] = bool(value[2][0])
        elif 3 in value:
            out[entry[1][0].decode()] = struct.unpack("<q", value[3][0])[0]
        elif 4 in value:
            out[entry[1][0].decode()] = struct.unpack("<d", value[4][0])[0]
        else:
            out[entry[1][0].decode()] = [item.decode() for item in parse(value.get(5, [b""])[0]).get(1, [])]
    return out


class Cookies(flight.ClientMiddlewareFactory):
    """Keeps the session cookie, as JDBC does and ADBC does on request."""

    def __init__(self):
        self.jar = {}

    def start_call(self, info):
        return _CookieCall(self.jar)


class _CookieCall(flight.ClientMiddleware):
    def __init__(self, jar):
        self.jar = jar

    def sending_headers(self):
        return {"cookie": "; ".join(f"{k}={v}" for k, v in self.jar.items())} if self.jar else {}

    def received_headers(self, headers):
        for name, values in headers.items():
            if name.lower() == "set-cookie":
                for value in values:
                    key, _, rest = value.partition(";")[0].partition("=")
                    self.jar[key.strip()] = rest.strip()
