//! The kernel's own symbols, from /proc/kallsyms.

use std::ops::Range;

/// Functions by their addresses.
#[derive(Debug, Default)]
pub struct Kernel {
    text: String,
    /// Address and line, in the order of addresses.
    functions: Vec<(u64, Range<usize>)>,
}

impl Kernel {
    /// Reads the symbols of the running kernel. There are none where they may not be seen.
    pub fn read() -> Self {
        Self::parse(std::fs::read_to_string("/proc/kallsyms").unwrap_or_default())
    }

    pub(crate) fn parse(text: String) -> Self {
        let mut functions = Vec::new();
        let mut begin = 0;
        for line in text.split_inclusive('\n') {
            let rest = line.trim_end();
            let end = begin + rest.len();
            // "ffffffff81000000 T name\t[module]"; zeros if addresses are hidden.
            let fields = rest.split_once(' ').and_then(|(address, rest)| {
                let (kind, _) = rest.split_once(' ')?;
                let address = u64::from_str_radix(address, 16).ok()?;
                let is_code = matches!(kind, "t" | "T" | "w" | "W");
                let name = end - rest.len() + kind.len() + 1;
                (is_code && address != 0).then_some((address, name..end))
            });
            functions.extend(fields);
            begin += line.len();
        }
        functions.sort_by_key(|(address, _)| *address);
        Self { text, functions }
    }

    /// The function at an address and the kernel module that it is of.
    pub fn look_up(&self, address: u64) -> Option<(&str, Option<&str>)> {
        let after = self
            .functions
            .partition_point(|(begin, _)| *begin <= address);
        let (_, line) = self.functions.get(after.checked_sub(1)?)?;
        let line = self.text.get(line.clone())?;
        match line.split_once('\t') {
            Some((name, module)) => Some((name, Some(module))),
            None => Some((line, None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_function_before_an_address() {
        let kernel = Kernel::parse(
            "ffffffff81000200 t second\n\
             ffffffff81000100 T first\n\
             ffffffff81000180 D data\n\
             ffffffffc0000000 t call\t[net]\n"
                .to_owned(),
        );
        assert_eq!(kernel.look_up(0xffff_ffff_8100_00ff), None);
        assert_eq!(
            kernel.look_up(0xffff_ffff_8100_01ff),
            Some(("first", None)),
            "data does not end a function"
        );
        assert_eq!(
            kernel.look_up(0xffff_ffff_8100_0200),
            Some(("second", None))
        );
        assert_eq!(
            kernel.look_up(0xffff_ffff_c000_0001),
            Some(("call", Some("[net]")))
        );
    }

    #[test]
    fn hidden_addresses_are_no_symbols() {
        let kernel = Kernel::parse("0000000000000000 T first\n".to_owned());
        assert_eq!(kernel.look_up(0x10), None);
    }
}
