//! Protocol buffer messages as a list of fields, in their order and with every unknown one kept.
//!
//! An edit touches the few fields it knows and writes all others back byte for byte. See
//! "Encoding" in the documentation of Protocol Buffers.

/// One field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub number: u32,
    pub value: Value,
}

/// A value as it is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Fixed32([u8; 4]),
}

/// A message, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(pub Vec<Field>);

impl Message {
    /// Splits a message into its fields; `None` if it is malformed.
    pub fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes)?;
            let value = match key & 7 {
                0 => Value::Varint(take_varint(&mut bytes)?),
                1 => Value::Fixed64(take(&mut bytes, 8)?.try_into().ok()?),
                2 => {
                    let len = usize::try_from(take_varint(&mut bytes)?).ok()?;
                    Value::Bytes(take(&mut bytes, len)?.to_vec())
                }
                5 => Value::Fixed32(take(&mut bytes, 4)?.try_into().ok()?),
                _ => return None,
            };
            fields.push(Field {
                number: u32::try_from(key >> 3).ok()?,
                value,
            });
        }
        Some(Self(fields))
    }

    /// Writes the message back.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Field { number, value } in &self.0 {
            let key = |kind: u64| u64::from(*number) << 3 | kind;
            match value {
                Value::Varint(n) => {
                    put_varint(&mut bytes, key(0));
                    put_varint(&mut bytes, *n);
                }
                Value::Fixed64(data) => {
                    put_varint(&mut bytes, key(1));
                    bytes.extend(data);
                }
                Value::Bytes(data) => {
                    put_varint(&mut bytes, key(2));
                    put_varint(&mut bytes, data.len() as u64);
                    bytes.extend(data);
                }
                Value::Fixed32(data) => {
                    put_varint(&mut bytes, key(5));
                    bytes.extend(data);
                }
            }
        }
        bytes
    }

    /// The number in a field, if it is there.
    pub fn number(&self, field: u32) -> Option<u64> {
        self.0.iter().find_map(|f| match f.value {
            Value::Varint(n) if f.number == field => Some(n),
            _ => None,
        })
    }

    /// The bytes in a field, if it is there.
    pub fn bytes(&self, field: u32) -> Option<&[u8]> {
        self.0.iter().find_map(|f| match &f.value {
            Value::Bytes(data) if f.number == field => Some(data.as_slice()),
            _ => None,
        })
    }

    /// The messages in a repeated field; what is none is left out.
    pub fn messages(&self, field: u32) -> Vec<Self> {
        let message = |f: &Field| match &f.value {
            Value::Bytes(bytes) if f.number == field => Self::parse(bytes),
            _ => None,
        };
        self.0.iter().filter_map(message).collect()
    }

    /// Sets a number that is there; adds none.
    pub fn replace_number(&mut self, field: u32, number: u64) {
        for f in &mut self.0 {
            if f.number == field {
                f.value = Value::Varint(number);
            }
        }
    }

    /// The numbers in a repeated field, packed or not; `None` if it is malformed.
    pub fn numbers(&self, field: u32) -> Option<Vec<u64>> {
        let mut numbers = Vec::new();
        for f in self.0.iter().filter(|f| f.number == field) {
            match &f.value {
                Value::Varint(n) => numbers.push(*n),
                Value::Bytes(packed) => {
                    let mut rest = packed.as_slice();
                    while !rest.is_empty() {
                        numbers.push(take_varint(&mut rest)?);
                    }
                }
                _ => return None,
            }
        }
        Some(numbers)
    }

    /// Sets a field to these values, in place of those it has.
    pub fn set(&mut self, field: u32, values: impl IntoIterator<Item = Value>) {
        let place = self.0.iter().position(|f| f.number == field);
        self.remove(&[field]);
        let place = place.unwrap_or(self.0.len()).min(self.0.len());
        let fields = values.into_iter().map(|value| Field {
            number: field,
            value,
        });
        self.0.splice(place..place, fields);
    }

    /// Takes fields out.
    pub fn remove(&mut self, fields: &[u32]) {
        self.0.retain(|f| !fields.contains(&f.number));
    }

    /// Changes the message in a field, if it is there and well-formed. Returns whether it was.
    pub fn edit(&mut self, field: u32, change: impl FnOnce(&mut Self)) -> bool {
        for f in &mut self.0 {
            if f.number == field
                && let Value::Bytes(data) = &mut f.value
                && let Some(mut inner) = Self::parse(data)
            {
                change(&mut inner);
                *data = inner.to_bytes();
                return true;
            }
        }
        false
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_survive_an_edit_in_place() {
        let inner = Message(vec![
            Field {
                number: 1,
                value: Value::Varint(u64::MAX),
            },
            Field {
                number: 8,
                value: Value::Varint(300),
            },
            Field {
                number: 4000,
                value: Value::Fixed32([1, 2, 3, 4]),
            },
        ]);
        let outer = Message(vec![
            Field {
                number: 9,
                value: Value::Fixed64([7; 8]),
            },
            Field {
                number: 3,
                value: Value::Bytes(inner.to_bytes()),
            },
        ]);
        let mut edited = Message::parse(&outer.to_bytes()).unwrap();
        assert_eq!(edited, outer);
        assert!(edited.edit(3, |m| m.remove(&[8])));
        assert!(!edited.edit(5, |_| ()));
        let inner = Message::parse(edited.bytes(3).unwrap()).unwrap();
        assert_eq!(inner.number(1), Some(u64::MAX));
        assert_eq!(inner.number(8), None);
        assert_eq!(
            inner.0[1],
            Field {
                number: 4000,
                value: Value::Fixed32([1, 2, 3, 4])
            }
        );
    }

    #[test]
    fn a_repeated_field_is_read_packed_or_not_and_set_in_its_place() {
        let number = |number, n| Field {
            number,
            value: Value::Varint(n),
        };
        let mut message = Message(vec![
            number(1, 7),
            number(2, 300),
            number(2, 5),
            number(3, 9),
        ]);
        assert_eq!(message.numbers(2), Some(vec![300, 5]));
        let packed = Field {
            number: 2,
            value: Value::Bytes(vec![0xac, 2, 5]),
        };
        assert_eq!(Message(vec![packed]).numbers(2), Some(vec![300, 5]));
        message.set(2, [Value::Varint(1)]);
        assert_eq!(message.0, [number(1, 7), number(2, 1), number(3, 9)]);
        message.set(4, [Value::Varint(2)]);
        assert_eq!(message.0[3], number(4, 2));
    }

    #[test]
    fn malformed_messages_are_refused() {
        assert_eq!(Message::parse(&[0x0a, 5, 1]), None);
        assert_eq!(Message::parse(&[0x80]), None);
        assert_eq!(Message::parse(&[0x0b]), None);
    }
}
