//! A program for a guest, without a compiler: x86-64 machine code in the smallest ELF file that Linux takes.

/// Writes `says` to its standard output, and exits with `code`.
pub fn program(says: &str, code: u8) -> Vec<u8> {
    let length = u32::try_from(says.len()).expect("a short text");
    let mut text = Vec::new();
    // write(1, says, length): the text follows the code, 19 bytes after the instruction that takes its address.
    text.extend([0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0]);
    text.extend([0x48, 0x8d, 0x35, 19, 0, 0, 0]);
    text.push(0xba);
    text.extend(length.to_le_bytes());
    text.extend([0x0f, 0x05]);
    // exit(code)
    text.extend([0xb8, 60, 0, 0, 0, 0xbf, code, 0, 0, 0, 0x0f, 0x05]);
    text.extend(says.as_bytes());
    elf(&text)
}

/// Writes `tick 0`, `tick 1` and so on to `tick 9`, and begins again: some fifty lines a second, for ever.
pub fn ticker() -> Vec<u8> {
    const PAUSE_NS: u64 = 20_000_000;
    let mut text = Vec::new();
    // write(1, line, 7): the line is at 59, the pause at 66, as are the distances below.
    text.extend([0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0x48, 0x8d, 0x35, 42, 0, 0, 0, 0xba, 7, 0, 0, 0, 0x0f, 0x05]);
    // nanosleep(pause, 0)
    text.extend([0xb8, 35, 0, 0, 0, 0x48, 0x8d, 0x3d, 30, 0, 0, 0, 0x31, 0xf6, 0x0f, 0x05]);
    // The next digit; after the last the first; and from the top.
    text.extend([0x48, 0x8d, 0x1d, 17, 0, 0, 0, 0xfe, 0x03, 0x80, 0x3b, b'9' + 1, 0x75, 0xca]);
    text.extend([0xc6, 0x03, b'0', 0xeb, 0xc5]);
    text.extend(b"tick 0\n");
    text.extend([0, PAUSE_NS].iter().flat_map(|value| value.to_le_bytes()));
    elf(&text)
}

/// A file that loads `text`, which may change itself, and begins with its first byte.
fn elf(text: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + text.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let long = |file: &mut Vec<u8>, values: &[u64]| file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    // An executable for x86-64; its entry, and where its one program header is.
    half(&mut file, &[2, 62]);
    word(&mut file, &[1]);
    long(&mut file, &[BASE + HEADERS, 64, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 64, 0, 0]);
    // Load all of it, to be read, written and executed.
    word(&mut file, &[1, 7]);
    long(&mut file, &[0, BASE, BASE, size, size, 0x1000]);
    file.extend(text);
    file
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    fn run(program: &[u8]) -> (Command, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("program");
        std::fs::write(&file, program).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        (Command::new(&file), dir)
    }

    #[test]
    fn the_program_says_its_text_and_exits_with_its_code() {
        let (mut program, _dir) = run(&super::program("I fail\n", 3));
        let output = program.output().unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"I fail\n"[..]));
    }

    #[test]
    fn the_ticker_counts_from_0_to_9_again_and_again() {
        let (mut ticker, _dir) = run(&super::ticker());
        let mut ticker = ticker.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(ticker.stdout.take().unwrap()).lines().map(Result::unwrap);
        let said: Vec<String> = lines.take(25).collect();
        ticker.kill().unwrap();
        ticker.wait().unwrap();
        assert_eq!(said, (0..25).map(|n| format!("tick {}", n % 10)).collect::<Vec<_>>());
    }
}
