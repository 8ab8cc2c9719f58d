"""Numba's IR to LLVM in one walk, which infers types and emits code at once.

The functions of this package are written in a small language: int64 and float arithmetic, comparisons, typed pointers,
loops over ranges, branches, and calls of intrinsics. A variable of it has the type of what is assigned to it, so one
walk in program order knows every type; Numba's own inference and lowering, which know the whole of Python and NumPy,
take many times as long. `Unsupported` says that a function is beyond this language; it is then compiled by them.

A variable lives in a register where it is assigned once, else in a slot of the stack that LLVM makes a register of.
A name that is bound again with another type, as a pointer in the next loop nest, is another slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import bytecode, interpreter
from numba.core import ir as numba_ir
from numba.core.dispatcher import Dispatcher

from tapegrad.kernels.cpu.intrinsics import WORD
from tapegrad.kernels.cpu.operations import (
    BUILTINS,
    Contexts,
    Range,
    Unsupported,
    Value,
    binary,
    call_intrinsic,
    constant,
    llvm_type,
    truth,
    unary,
)
from tapegrad.kernels.cpu.pointers import PointerType, load_element, store_element

#: Loops of more iterations are not unrolled. LLVM would unroll one of 32 before it vectorises, and then vectorise the
#: loop around it, whose elements lie apart: a row's bias and ReLU are then sixty times the code, and half as fast.
SHORT_LOOP = 16


@dataclass(frozen=True)
class _Iterator:
    """A range that is iterated: its next number lies in a slot."""

    slot: Any
    range: Range


@dataclass(frozen=True)
class _Item:
    """The outcome of one step of an iterator: a number, and whether it is inside the range."""

    number: Any
    inside: Any


def _is_short(numbers: Range) -> bool:
    """Whether a range is known to have few numbers."""
    start, stop = numbers.start, numbers.stop
    known = isinstance(start, ir.Constant) and isinstance(stop, ir.Constant)
    return known and abs(stop.constant - start.constant) <= SHORT_LOOP * abs(numbers.step)


def _not_unrolled(module: ir.Module) -> ir.MDValue:
    """The metadata of a loop that LLVM leaves rolled: a node that, as every loop's does, begins with itself."""
    disabled = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    node = ir.MDValue(module, [disabled], name=str(len(module.metadata)))
    node.operands = (node, disabled)
    return node


# --- functions ------------------------------------------------------------------------------------------------------


class _Interpreter(interpreter.Interpreter):  # type: ignore[misc]
    """Bytecode to Numba's IR, without the rewriting of lists, dicts, ``with`` and ``try``: a third of its time."""

    def post_process(self, peepholes: Any, func_ir: Any) -> Any:
        return func_ir


def _skip_caches(code: Any) -> None:
    """Let each instruction be followed by the next one that does something; half of those of Python 3.11 are caches."""
    following = None
    for instruction in reversed(code.table.values()):
        if instruction.opname == "CACHE":
            continue
        # The target of a jump counts from what follows it.
        if following is not None and not instruction.is_jump:
            instruction.next = following
        following = instruction.offset


def _numba_ir(function: Callable[..., Any]) -> Any:
    identity = bytecode.FunctionIdentity.from_function(function)
    code = bytecode.ByteCode(identity)
    _skip_caches(code)
    return _Interpreter(identity).interpret(code)


def _targets(block: Any) -> tuple[int, ...]:
    match block.body[-1]:
        case numba_ir.Jump(target=target):
            return (target,)
        case numba_ir.Branch(truebr=first, falsebr=second):
            return (first, second)
        case numba_ir.Return():
            return ()
    raise Unsupported(f"blocks that end in {block.body[-1]}")


class _Walk:
    """Emits the blocks of one function, in their order, behind the builder's position."""

    def __init__(self, builder: ir.IRBuilder, contexts: Contexts, source: Any, arguments: Sequence[Value]) -> None:
        self.builder = builder
        self.contexts = contexts
        self.source = source
        self.arguments = arguments
        assigned = (inst.target.name for block in source.blocks.values() for inst in block.find_insts(numba_ir.Assign))
        self.assignments = Counter(assigned)
        self.registers: dict[str, Value] = {}
        self.slots: dict[tuple[str, Any], Any] = {}
        # The names in registers that are bound here; the type here of those in slots, and the value where this block
        # has assigned or read it. Temporaries of the stack machine are bound wherever they are read.
        self.bound: set[str] = set()
        self.kinds: dict[str, Any] = {}
        self.label = 0
        self.long_loops: dict[int, ir.MDValue] = {}
        self.recent: dict[str, Value] = {}

    # --- variables

    def slot(self, kind: ir.Type) -> Any:
        """Memory of a variable, in the function's first block, where LLVM looks for what can be a register."""
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

    def assign(self, name: str, value: Value) -> None:
        """Bind a name."""
        if self.assignments[name] == 1 or value.kind in (None, types.none):
            if self.registers.setdefault(name, value) != value:
                raise Unsupported(f"{name} is bound to several objects")
            self.kinds.pop(name, None)
            if not name.startswith("$"):
                self.bound.add(name)
            return
        key = (name, value.kind)
        if key not in self.slots:
            self.slots[key] = self.slot(llvm_type(value.kind))
        self.builder.store(value.value, self.slots[key])
        self.bound.discard(name)
        self.kinds[name] = value.kind
        self.recent[name] = value

    def read(self, variable: Any) -> Value:
        """What a variable holds here."""
        name = variable.name
        if name in self.kinds:
            if name not in self.recent:
                kind = self.kinds[name]
                self.recent[name] = Value(kind, self.builder.load(self.slots[name, kind]))
            return self.recent[name]
        if name in self.bound or (name.startswith("$") and name in self.registers):
            return self.registers[name]
        raise Unsupported(f"{name} may be unbound")

    # --- blocks

    def run(self, leave: Callable[[Value], None]) -> None:
        """Emit all blocks; `leave` emits a return."""
        blocks = self.source.blocks
        order = sorted(blocks)
        targets = {label: _targets(blocks[label]) for label in order}
        before: dict[int, list[int]] = {label: [] for label in order}
        for label, following in targets.items():
            for target in following:
                before[target].append(label)
        self.blocks = {label: self.builder.append_basic_block(f"B{label}") for label in order}
        self.builder.branch(self.blocks[order[0]])
        entered: dict[int, tuple[set[str], dict[str, Any]]] = {}
        left: dict[int, tuple[set[str], dict[str, Any]]] = {}
        for label in order:
            self.label = label
            known = [left[other] for other in before[label] if other in left]
            if not known and label != order[0]:
                raise Unsupported(f"block {label} is not reached from above")
            entered[label] = _common(known)
            self.bound, self.kinds, self.recent = set(entered[label][0]), dict(entered[label][1]), {}
            self.builder.position_at_end(self.blocks[label])
            for statement in blocks[label].body:
                self.statement(statement, leave)
            left[label] = self.bound, self.kinds
        for label in order:
            for other in before[label]:
                if other >= label and _common([entered[label], left[other]]) != entered[label]:
                    raise Unsupported(f"a variable changes its type in the loop at {label}")

    def statement(self, statement: Any, leave: Callable[[Value], None]) -> None:
        """Emit one statement."""
        builder = self.builder
        match statement:
            case numba_ir.Assign():
                self.assign(statement.target.name, self.value(statement.value))
            case numba_ir.SetItem():
                target, index, value = map(self.read, (statement.target, statement.index, statement.value))
                if not isinstance(target.kind, PointerType) or index.kind != types.int64:
                    raise Unsupported(f"an item of {target.kind}")
                if value.kind != target.kind.dtype:
                    raise Unsupported(f"a {value.kind} stored through a pointer to {target.kind.dtype}")
                store_element(builder, target.kind, target.value, index.value, value.value)
            case numba_ir.Jump():
                jump = builder.branch(self.blocks[statement.target])
                if statement.target in self.long_loops:
                    jump.set_metadata("llvm.loop", self.long_loops[statement.target])
            case numba_ir.Branch():
                condition = truth(builder, self.read(statement.cond))
                builder.cbranch(condition, self.blocks[statement.truebr], self.blocks[statement.falsebr])
            case numba_ir.Return():
                leave(self.read(statement.value))
            case numba_ir.Del():
                pass
            case _:
                raise Unsupported(f"the statement {statement}")

    def value(self, value: Any) -> Value:
        """The right-hand side of an assignment."""
        match value:
            case numba_ir.Const() | numba_ir.Global() | numba_ir.FreeVar():
                return constant(value.value)
            case numba_ir.Var():
                return self.read(value)
            case numba_ir.Arg():
                argument: Value = self.arguments[value.index]
                return argument
            case numba_ir.Expr() if value.op in self._EXPRESSIONS:
                emission: Callable[[_Walk, Any], Value] = self._EXPRESSIONS[value.op]
                return emission(self, value)
        raise Unsupported(f"the value {value}")

    # --- expressions

    def _binop(self, value: Any) -> Value:
        return binary(self.builder, value.fn, self.read(value.lhs), self.read(value.rhs))

    def _inplace_binop(self, value: Any) -> Value:
        return binary(self.builder, value.immutable_fn, self.read(value.lhs), self.read(value.rhs))

    def _unary(self, value: Any) -> Value:
        return unary(self.builder, value.fn, self.read(value.value))

    def _cast(self, value: Any) -> Value:
        return self.read(value.value)

    def _getitem(self, value: Any) -> Value:
        pointer, index = self.read(value.value), self.read(value.index)
        if not isinstance(pointer.kind, PointerType) or index.kind != types.int64:
            raise Unsupported(f"an item of {pointer.kind}")
        return Value(pointer.kind.dtype, load_element(self.builder, pointer.kind, pointer.value, index.value))

    def _getiter(self, value: Any) -> Value:
        iterated = self.read(value.value).value
        if not isinstance(iterated, Range):
            raise Unsupported("iteration over other than a range")
        slot = self.slot(WORD)
        self.builder.store(iterated.start, slot)
        return Value(None, _Iterator(slot, iterated))

    def _iternext(self, value: Any) -> Value:
        builder, iterator = self.builder, self.read(value.value).value
        if not isinstance(iterator, _Iterator):
            raise Unsupported("iteration over other than a range")
        step = iterator.range.step
        number = builder.load(iterator.slot)
        if not _is_short(iterator.range):
            self.long_loops[self.label] = _not_unrolled(builder.module)
        inside = builder.icmp_signed("<" if step > 0 else ">", number, iterator.range.stop)
        builder.store(builder.add(number, WORD(step), flags=("nsw",)), iterator.slot)
        return Value(None, _Item(number, inside))

    def _pair_first(self, value: Any) -> Value:
        return Value(types.int64, self.read(value.value).value.number)

    def _pair_second(self, value: Any) -> Value:
        return Value(types.boolean, self.read(value.value).value.inside)

    def _call(self, value: Any) -> Value:
        if value.kws or value.vararg is not None:
            raise Unsupported("a call with keywords")
        function = self.read(value.func).value
        arguments = [self.read(argument) for argument in value.args]
        if hasattr(function, "definition"):
            return call_intrinsic(self.builder, self.contexts, function, arguments)
        if isinstance(function, type | type(min)) and function in BUILTINS:
            return BUILTINS[function](self.builder, arguments)
        if isinstance(function, Dispatcher):
            return self._inlined(function.py_func, arguments)
        raise Unsupported(f"a call of {function}")

    def _inlined(self, function: Callable[..., Any], arguments: Sequence[Value]) -> Value:
        """The body of a jitted function in place of its call."""
        builder = self.builder
        end = builder.append_basic_block("inlined")
        results: list[Value] = []

        def leave(value: Value) -> None:
            if not results:
                results.append(Value(value.kind, self.slot(llvm_type(value.kind))))
            if value.kind != results[0].kind:
                raise Unsupported(f"{function} returns {value.kind} and {results[0].kind}")
            builder.store(value.value, results[0].value)
            builder.branch(end)

        source = _numba_ir(function)
        if source.arg_count != len(arguments):
            raise Unsupported(f"a call of {function} with {len(arguments)} arguments")
        _Walk(builder, self.contexts, source, arguments).run(leave)
        builder.position_at_end(end)
        return Value(results[0].kind, builder.load(results[0].value))

    def _getattr(self, value: Any) -> Value:
        owner = self.read(value.value).value
        if not isinstance(owner, ModuleType):
            raise Unsupported(f"the attribute {value.attr}")
        return constant(getattr(owner, value.attr))

    _EXPRESSIONS: dict[str, Callable[[_Walk, Any], Value]] = {
        "binop": _binop,
        "inplace_binop": _inplace_binop,
        "unary": _unary,
        "cast": _cast,
        "getitem": _getitem,
        "getiter": _getiter,
        "iternext": _iternext,
        "pair_first": _pair_first,
        "pair_second": _pair_second,
        "call": _call,
        "getattr": _getattr,
    }


_UNBOUND = object()


def _common(states: Sequence[tuple[set[str], dict[str, Any]]]) -> tuple[set[str], dict[str, Any]]:
    """The names that are bound in all states, and the types of those in slots that are the same in all."""
    if not states:
        return set(), {}
    (bound, kinds), *others = states
    for also_bound, also_kinds in others:
        bound = bound & also_bound
        kinds = {name: kind for name, kind in kinds.items() if also_kinds.get(name, _UNBOUND) == kind}
    return bound, kinds


def emit_function(
    module: ir.Module, symbol: str, source: Callable[..., Any], signature: Any, contexts: Contexts
) -> ir.Function:
    """Emit a Python function as the C function of that symbol.

    Raises
    ------
    Unsupported
        Where the function is beyond the language; the module is then of no use.
    """
    is_void = signature.return_type == types.none
    result = ir.VoidType() if is_void else llvm_type(signature.return_type)
    function = ir.Function(module, ir.FunctionType(result, [llvm_type(kind) for kind in signature.args]), symbol)
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))

    def leave(value: Value) -> None:
        if is_void and value.kind == types.none:
            builder.ret_void()
        elif value.kind == signature.return_type:
            builder.ret(value.value)
        elif value.kind == types.int64 and isinstance(signature.return_type, types.Integer):
            builder.ret(builder.trunc(value.value, result))
        else:
            raise Unsupported(f"{value.kind} returned as {signature.return_type}")

    arguments = [Value(kind, argument) for kind, argument in zip(signature.args, function.args, strict=True)]
    _Walk(builder, contexts, _numba_ir(source), arguments).run(leave)
    return function
