//! Python's pickles as plain data: what would be called or imported is written down, and never is.

use std::collections::HashMap;
use std::io::Read;

use crate::error::Fault;

/// Longest pickle that is read, in bytes. Those of checkpoints hold names and sizes; the numbers lie beside them.
pub(super) const MOST_BYTES: u64 = 64 << 20;
/// Most values in a pickle, most that these hold and most at once on the stack, so that a small file cannot ask for
/// much memory.
const MOST_VALUES: usize = 1 << 22;

/// Stands for a value: values share parts, and may hold themselves.
pub(super) type Id = usize;

#[derive(Debug)]
pub(super) enum Value {
    Int(i64),
    Text(String),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Something that Python would import: its module and name, with a dot between.
    Global(String),
    /// Something that Python would call, or an object that it would make of a class.
    Call {
        callable: Id,
        args: Id,
    },
    /// A reference to something outside of the pickle: in a checkpoint, numbers.
    Persistent(Id),
    /// Anything that no tensor is told by: `None`, booleans, floats, bytes, sets, integers beyond 64 bits.
    Other,
}

/// A pickle that was read.
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Reads one pickle, and no byte after it.
    pub(super) fn read(input: &mut impl Read) -> Result<Self, Fault> {
        let mut machine = Machine {
            input: input.take(MOST_BYTES),
            values: vec![],
            held: 0,
            stack: vec![],
            marks: vec![],
            memo: HashMap::new(),
        };
        while !machine.step()? {}
        let root = machine.pop()?;
        let values = machine.values;
        Ok(Self { values, root })
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::Other)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub(super) fn count(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(int) => usize::try_from(*int).ok(),
            _ => None,
        }
    }

    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Sequence(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn global(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Global(name) => Some(name),
            _ => None,
        }
    }

    /// The name of what is called, where it has one, and the arguments.
    pub(super) fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        match self.get(id) {
            Value::Call { callable, args } => {
                let callable = self.global(*callable).unwrap_or("something without a name");
                Some((callable, self.sequence(*args).unwrap_or_default()))
            }
            _ => None,
        }
    }

    pub(super) fn values(&self) -> &[Value] {
        &self.values
    }
}

/// The pickle machine (Python's `pickletools` describes it), less everything that acts.
struct Machine<R> {
    input: R,
    values: Vec<Value>,
    /// Items of sequences, keys and values of dictionaries, bytes of globals' names: what a few bytes of the file can
    /// make many of, from what it recalls.
    held: usize,
    stack: Vec<Id>,
    /// Height of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<R: Read> Machine<R> {
    /// One instruction; true at the end.
    #[allow(clippy::too_many_lines)] // a table of opcodes
    fn step(&mut self) -> Result<bool, Fault> {
        let [opcode] = self.bytes()?;
        match opcode {
            // PROTO, FRAME, STOP
            0x80 => drop(self.bytes::<1>()?),
            0x95 => drop(self.bytes::<8>()?),
            b'.' => return Ok(true),
            // NONE, NEWTRUE, NEWFALSE
            b'N' | 0x88 | 0x89 => self.push(Value::Other)?,
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => {
                let int = i32::from_le_bytes(self.bytes()?);
                self.push(Value::Int(int.into()))?;
            }
            b'K' => {
                let [int] = self.bytes()?;
                self.push(Value::Int(int.into()))?;
            }
            b'M' => {
                let int = u16::from_le_bytes(self.bytes()?);
                self.push(Value::Int(int.into()))?;
            }
            0x8a => {
                let len = self.length::<1>()?;
                self.long(len)?;
            }
            0x8b => {
                let len = self.length::<4>()?;
                self.long(len)?;
            }
            b'G' => {
                self.bytes::<8>()?;
                self.push(Value::Other)?;
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8; BINSTRING, SHORT_BINSTRING (Python 2's)
            b'X' | b'T' => self.string::<4>()?,
            0x8c | b'U' => self.string::<1>()?,
            0x8d => self.string::<8>()?,
            // BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
            b'B' => self.skip::<4>()?,
            b'C' => self.skip::<1>()?,
            0x8e | 0x96 => self.skip::<8>()?,
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                if self.marks.len() == MOST_VALUES {
                    return Err(format!("more than {MOST_VALUES} marks at once").into());
                }
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack(top)?;
            }
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT, EMPTY_SET; TUPLE, LIST, FROZENSET; TUPLE1 to TUPLE3
            b')' | b']' => self.push(Value::Sequence(vec![]))?,
            b'}' => self.push(Value::Dict(vec![]))?,
            0x8f => self.push(Value::Other)?,
            b't' | b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Sequence(items))?;
            }
            0x91 => {
                self.pop_to_mark()?;
                self.push(Value::Other)?;
            }
            0x85..=0x87 => {
                let mut items = (0x85..=opcode).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push(Value::Sequence(items))?;
            }
            // DICT, SETITEM, SETITEMS, APPEND, APPENDS, ADDITEMS
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(vec![]))?;
                self.extend(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend(vec![key, value])?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'u' | b'e' => {
                let items = self.pop_to_mark()?;
                self.extend(items)?;
            }
            0x90 => drop(self.pop_to_mark()?),
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id| match self.values.get(id) {
                    Some(Value::Text(text)) => Ok(text.as_str()),
                    _ => Err("a global without a name".to_string()),
                };
                let global = format!("{}.{}", text(module)?, text(name)?);
                self.push(Value::Global(global))?;
            }
            // REDUCE, NEWOBJ, NEWOBJ_EX, BUILD, BINPERSID
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args)?;
            }
            0x92 => {
                let (_, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(class, args)?;
            }
            // The state of an object: what Python would hand it, and here nobody reads.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let index = self.length::<1>()?;
                self.memoize(index)?;
            }
            b'r' => {
                let index = self.length::<4>()?;
                self.memoize(index)?;
            }
            0x94 => self.memoize(self.memo.len())?,
            b'h' => {
                let index = self.length::<1>()?;
                self.recall(index)?;
            }
            b'j' => {
                let index = self.length::<4>()?;
                self.recall(index)?;
            }
            other => return Err(format!("opcode {other:#04x}, which no checkpoint has").into()),
        }
        Ok(false)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        match self.input.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err("it ends too soon".into()),
            Err(error) => Err(error.into()),
        }
    }

    /// A number of N bytes.
    fn length<const N: usize>(&mut self) -> Result<usize, Fault> {
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(self.bytes::<N>()?) {
            *to = from;
        }
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| "a length beyond all measure".into())
    }

    /// That many bytes, or an error where the pickle has less: nothing is reserved for them beforehand.
    fn chunk(&mut self, len: usize) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![];
        let read = self.input.by_ref().take(len as u64).read_to_end(&mut bytes);
        if read? == len {
            Ok(bytes)
        } else {
            Err("it ends too soon".into())
        }
    }

    fn string<const N: usize>(&mut self) -> Result<(), Fault> {
        let len = self.length::<N>()?;
        let bytes = self.chunk(len)?;
        self.push(Value::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn skip<const N: usize>(&mut self) -> Result<(), Fault> {
        let len = self.length::<N>()?;
        self.chunk(len)?;
        self.push(Value::Other)
    }

    /// An integer in two's complement, the lowest byte first.
    fn long(&mut self, len: usize) -> Result<(), Fault> {
        let bytes = self.chunk(len)?;
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        for (to, from) in wide.iter_mut().zip(&bytes) {
            *to = *from;
        }
        self.push(match len {
            0..=8 => Value::Int(i64::from_le_bytes(wide)),
            _ => Value::Other,
        })
    }

    fn line(&mut self) -> Result<String, Fault> {
        let mut line = vec![];
        loop {
            match self.bytes()? {
                [b'\n'] => return Ok(String::from_utf8_lossy(&line).into_owned()),
                [byte] => line.push(byte),
            }
        }
    }

    fn push(&mut self, value: Value) -> Result<(), Fault> {
        if self.values.len() == MOST_VALUES {
            return Err(format!("more than {MOST_VALUES} values").into());
        }
        self.hold(match &value {
            Value::Sequence(items) => items.len(),
            Value::Dict(pairs) => 2 * pairs.len(),
            Value::Global(name) => name.len(),
            _ => 0,
        })?;
        self.stack(self.values.len())?;
        self.values.push(value);
        Ok(())
    }

    /// Puts a value on top of the stack, which may hold one many times.
    fn stack(&mut self, id: Id) -> Result<(), Fault> {
        if self.stack.len() == MOST_VALUES {
            return Err(format!("a stack of more than {MOST_VALUES}").into());
        }
        self.stack.push(id);
        Ok(())
    }

    /// Counts what values hold.
    fn hold(&mut self, count: usize) -> Result<(), Fault> {
        self.held += count;
        if self.held > MOST_VALUES {
            return Err(format!("lists, dictionaries and names that hold more than {MOST_VALUES} in all").into());
        }
        Ok(())
    }

    /// The call, or the dictionary that is made by calling `OrderedDict`: empty, or in Python 2 from a list of pairs.
    fn call(&mut self, callable: Id, args: Id) -> Result<(), Fault> {
        let sequence = |id: Id| match self.values.get(id) {
            Some(Value::Sequence(items)) => Some(&items[..]),
            _ => None,
        };
        let pair = |id: &Id| match sequence(*id)? {
            [key, value] => Some((*key, *value)),
            _ => None,
        };
        let pairs = match (self.values.get(callable), sequence(args)) {
            (Some(Value::Global(name)), Some(args)) if name == "collections.OrderedDict" => match args {
                [] => Some(vec![]),
                [list] => match sequence(*list) {
                    Some(list) => {
                        let pairs = list.iter().map(pair).collect::<Option<_>>();
                        Some(pairs.ok_or("it makes a dictionary of what are no pairs")?)
                    }
                    None => None,
                },
                _ => None,
            },
            _ => None,
        };
        self.push(match pairs {
            Some(pairs) => Value::Dict(pairs),
            None => Value::Call { callable, args },
        })
    }

    fn top(&self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(top) if self.stack.len() > floor => Ok(*top),
            _ => Err("it takes what is not there".into()),
        }
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Fault> {
        // Whatever is popped stops at the mark, so that the stack is at least as high.
        let mark = self.marks.pop().ok_or("it takes what is not there")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    /// Adds items to the list, or keys and values to the dictionary, on top of the stack. What an object of a class is
    /// given is dropped: nobody reads it.
    fn extend(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        let top = self.top()?;
        self.hold(items.len())?;
        match self.values.get_mut(top) {
            Some(Value::Dict(pairs)) if items.len().is_multiple_of(2) => {
                let (keys, values) = (items.iter().step_by(2), items.iter().skip(1).step_by(2));
                pairs.extend(keys.copied().zip(values.copied()));
                Ok(())
            }
            Some(Value::Sequence(list)) => {
                list.extend(items);
                Ok(())
            }
            Some(Value::Call { .. }) => Ok(()),
            _ => Err("it fills what is no list and no dictionary".into()),
        }
    }

    fn memoize(&mut self, index: usize) -> Result<(), Fault> {
        if self.memo.len() == MOST_VALUES {
            return Err(format!("more than {MOST_VALUES} remembered values").into());
        }
        self.memo.insert(index, self.top()?);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<(), Fault> {
        let id = *self.memo.get(&index).ok_or("it recalls what it never stored")?;
        self.stack(id)
    }
}

#[cfg(test)]
mod tests;
