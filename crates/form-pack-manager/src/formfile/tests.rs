use proptest::prelude::*;

use super::*;

const HELLO: &str = "FROM scratch\nENTRYPOINT [\"/hello\"]\n";

fn parse(text: &str) -> Result<Formfile, Vec<Diagnostic>> {
    Formfile::parse("Formfile", text.as_bytes())
}

/// What is wrong with `line` in a Formfile that is otherwise fine.
fn complaint(line: &str) -> String {
    let errors = parse(&format!("{HELLO}{line}\n")).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].line, 3);
    format!("{} | {}", errors[0].message, errors[0].hint.clone().unwrap_or_default())
}

#[test]
fn a_formfile_with_every_instruction_means_what_it_says() {
    let text = "\u{feff}# a comment\r\n\
        from scratch\r\n\
        \r\n\
        COPY hello /bin/\r\n\
        WORKDIR /srv\r\n\
        workdir ./www//data/\r\n\
        COPY a b/c \\\r\n\
        # a comment between\r\n\
        \x20 .\r\n\
        ENV LOG=info GREETING=\"good day\" Q='a\\$b' E=\\$5\r\n\
        ENV MOTTO all of  it\r\n\
        ENV LOG=debug\r\n\
        USER app:1000\r\n\
        EXPOSE 80 53/udp 80/tcp\r\n\
        EXPOSE 53/UDP\r\n\
        VCPU 2\r\n\
        MEMORY 128\r\n\
        DISK 64\r\n\
        ENTRYPOINT [\"/bin/hello\", \"--name\", \"\\u00e4\"]";
    // `at` begins with the word that is meant.
    let place = |path: &str, at: &str| {
        let start = text.find(at).unwrap();
        let width = at.find(char::is_whitespace).unwrap_or(at.len());
        Place { path: path.to_owned(), span: Span { start, end: start + width } }
    };
    let env = [("LOG", "debug"), ("GREETING", "good day"), ("Q", "a\\$b"), ("E", "$5"), ("MOTTO", "all of  it")];
    let expected = Formfile {
        steps: vec![
            Step::Copy {
                sources: vec![place("hello", "hello")],
                destination: place("/bin", "/bin/"),
                into_directory: true,
            },
            Step::Workdir(place("/srv", "/srv")),
            Step::Workdir(place("/srv/www/data", "./www//data/")),
            Step::Copy {
                sources: vec![place("a", "a b/c"), place("b/c", "b/c")],
                destination: place("/srv/www/data", ".\r\nENV"),
                into_directory: true,
            },
        ],
        env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        workdir: "/srv/www/data".into(),
        user: Some("app:1000".into()),
        ports: vec![Port { number: 80, protocol: Protocol::Tcp }, Port { number: 53, protocol: Protocol::Udp }],
        entrypoint: vec!["/bin/hello".into(), "--name".into(), "ä".into()],
        machine: Machine { vcpu: 2, memory_mib: 128, disk_mib: 64 },
    };
    assert_eq!(parse(text), Ok(expected));
}

#[test]
fn a_diagnostic_reads_like_rustcs() {
    let errors = parse("FROM scratch\nENTRYPOINT [\"/a\"]\n\tCOPPY hello /hello\n").unwrap_err();
    let expected = "\
error: unknown instruction `COPPY`
 --> Formfile:3:2
  |
3 |  COPPY hello /hello
  |  ^^^^^
  = help: did you mean `COPY`?";
    assert_eq!(errors[0].to_string(), expected);
}

#[test]
fn every_error_is_reported_in_the_order_of_the_file() {
    let errors = parse("FROM debian\nCOPY ../a /b\nEXPOSE 99999\nMEMORY 1\nMEMORY 64\nFOO\n").unwrap_err();
    let lines: Vec<_> = errors.iter().map(|e| e.line).collect();
    // ENTRYPOINT is missing: that is said in line 1.
    assert_eq!(lines, [1, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_file_with_a_hundred_thousand_errors_costs_a_thousand_diagnostics() {
    assert_eq!(parse(&"X\n".repeat(100_000)).unwrap_err().len(), 1000);
}

#[test]
fn from_comes_first_and_both_it_and_entrypoint_must_be_there() {
    let messages = |text| parse(text).unwrap_err().into_iter().map(|e| e.message).collect::<Vec<_>>();
    assert_eq!(messages(""), ["FROM is missing", "ENTRYPOINT is missing"]);
    assert_eq!(messages("USER 1\nFROM scratch\nENTRYPOINT [\"/a\"]"), ["USER stands before FROM"]);
    assert_eq!(messages("FROM scratch\nENTRYPOINT"), ["ENTRYPOINT has no argument"]);
}

#[test]
fn single_valued_instructions_are_refused_the_second_time() {
    for line in ["FROM scratch", "ENTRYPOINT [\"/b\"]"] {
        assert!(complaint(line).contains("given twice"), "{line}");
    }
    for line in ["USER a", "VCPU 1", "MEMORY 64", "DISK 16"] {
        let errors = parse(&format!("{HELLO}{line}\n{line}\n")).unwrap_err();
        assert!(errors[0].message.contains("it stands in line 3 already"), "{line}: {errors:?}");
    }
}

#[test]
fn what_is_wrong_with_one_line_is_said_with_what_to_do() {
    for (line, expected) in [
        ("RUN make", "RUN is not supported | building inside a VM comes later; COPY what you have built"),
        ("copy a b", "the path is relative, and no WORKDIR says to what | write `/b`, or put a WORKDIR before it"),
        ("COPY a", "COPY needs a destination | for example `COPY hello /hello`"),
        ("COPY a b /c", "several sources need a directory to go into | write `/c/`"),
        ("COPY a/../b /c", "the path contains `..` | write it without"),
        ("COPY a /c/..", "the path contains `..` | write it without"),
        ("COPY /a /c", "the source is an absolute path | sources are relative to the build context; write `a`"),
        (
            "COPY *.rs /c/",
            "COPY takes no wildcards yet | name the files one by one, or copy their directory; wildcards come later",
        ),
        ("COPY --chown=1 a /c", "COPY takes no flags yet | owners are root; x bits are kept"),
        ("COPY $A /c", "variables are not expanded | write the value out; for a plain `$` in ENV write `\\$`"),
        ("ENV A=1 B", "ENV needs `name=value` here | for example `ENV LOG=info`"),
        (
            "ENV 1A=1",
            "`1A` cannot name an environment variable | a name has letters, digits and `_`, and starts with no digit",
        ),
        ("ENV A=\"x", "this quote is never closed | end the value with `\"`"),
        ("ENV A=\\n", "`\\n` is no escape | for a backslash write `\\\\`"),
        ("ENV P=$P:/x", "variables are not expanded | write the value out; for a plain `$` in ENV write `\\$`"),
        (
            "USER Root",
            "`Root` names no user | write `user` or `user:group`: lower-case names as useradd takes them, or numbers",
        ),
        (
            "USER 4294967295",
            "`4294967295` names no user | write `user` or `user:group`: lower-case names as useradd takes them, or numbers",
        ),
        ("EXPOSE 0", "`0` is no port | a port is a number from 1 to 65535; name several one by one"),
        ("EXPOSE 80/sctp", "`sctp` is no protocol that EXPOSE knows | write `80/tcp` or `80/udp`"),
        ("VCPU 65", "65 is out of range: from 1 to 64 | "),
        (
            "MEMORY 512M",
            "`512M` is no whole number | write a number from 64 to 1048576; the unit is MiB and is not written",
        ),
        ("DISK 99999999999999999999", "99999999999999999999 is out of range: from 16 to 1048576 MiB | "),
        ("WORKDIR", "WORKDIR has no argument | for example `WORKDIR /app`"),
        (
            "USER a\\",
            "the instruction is continued with `\\`, but a blank line follows | remove the `\\`, or the blank line",
        ),
        ("USER a\u{1b}[2J", "the control character U+001B is not allowed here | remove it"),
        ("USER a\0", "the control character U+0000 is not allowed here | remove it"),
    ] {
        assert_eq!(complaint(line), expected, "{line:?}");
    }
}

#[test]
fn an_entrypoint_that_is_not_an_array_of_strings_is_refused_where_it_breaks() {
    let error = |line: &str| {
        let mut errors = parse(&format!("FROM scratch\n{line}\n")).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.remove(0)
    };
    let shell = error("ENTRYPOINT /hello --say \"hi\"");
    assert!(shell.hint.unwrap().contains(r#"ENTRYPOINT ["/hello","--say","\"hi\""]"#));
    assert_eq!(error("ENTRYPOINT [\"/hello\", 1]").column, 23);
    assert_eq!(error("ENTRYPOINT []").message, "ENTRYPOINT names no program");
    assert_eq!(error("ENTRYPOINT [\"/a\", \"\\u0000\"]").message, "an argument holds a NUL");
    assert_eq!(error("ENTRYPOINT [\"/a\"").message, "this is not a JSON array of strings");
}

#[test]
fn what_a_package_could_not_hold_is_refused() {
    let many = |line: &dyn Fn(usize) -> String, count: usize| (0..count).map(line).collect::<Vec<_>>().join(" ");
    let variables = |count| format!("ENV {}", many(&|i| format!("V{i}=x"), count));
    let ports = |count| format!("EXPOSE {}", many(&|i| (i + 1).to_string(), count));
    assert!(parse(&format!("{HELLO}{}\n{}", variables(512), ports(64))).is_ok());
    assert!(complaint(&variables(513)).contains("more than 512 environment variables"));
    assert!(complaint(&ports(65)).contains("more than 64 ports"));
    assert!(complaint(&format!("ENV A={}", "x".repeat(32_769))).contains("the value has 32769 bytes"));
    let entrypoint = |words: &[&str]| parse(&format!("FROM scratch\nENTRYPOINT {}", serde_json::json!(words)));
    assert!(entrypoint(&["x"; 256]).is_ok());
    assert!(entrypoint(&["x"; 257]).is_err());
    assert!(entrypoint(&["x".repeat(4097).as_str()]).is_err());
}

#[test]
fn lines_and_files_that_are_too_long_or_not_utf8_are_refused() {
    let long = format!("{HELLO}ENV A={}\n", "x".repeat(64 << 10));
    assert!(parse(&long).unwrap_err()[0].message.starts_with("the line has 65542 bytes"));
    let huge = "#".repeat((1 << 20) + 1);
    assert!(parse(&huge).unwrap_err()[0].message.starts_with("the file has 1048577 bytes"));
    let latin = b"FROM scratch\nENTRYPOINT [\"/a\"]\nENV A=gr\xfc\xdfe\n";
    let errors = Formfile::parse("Formfile", latin).unwrap_err();
    assert_eq!((errors[0].line, errors[0].column), (3, 9));
}

#[test]
fn the_excerpt_of_a_long_line_is_a_window_around_the_mark() {
    let errors = parse(&format!("{HELLO}ENV A={} 9=x\n", "y".repeat(5000))).unwrap_err();
    let shown = errors[0].to_string();
    assert!(shown.lines().all(|line| line.chars().count() < 130), "{shown}");
    assert_eq!(errors[0].column, 5008);
    assert!(shown.contains("9=x") && shown.ends_with("starts with no digit"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Err(errors) = Formfile::parse("Formfile", &bytes) {
            for error in errors {
                let _ = error.to_string();
            }
        }
    }

    #[test]
    fn no_text_that_looks_like_a_formfile_makes_the_parser_panic(
        lines in proptest::collection::vec(
            "(FROM|COPY|ENV|WORKDIR|USER|EXPOSE|ENTRYPOINT|VCPU|X)?[ \t]?[a-z0-9/=.\"'\\\\$\\[\\], ü*:#-]{0,20}\r?", 0..12)
    ) {
        if let Err(errors) = parse(&lines.join("\n")) {
            prop_assert!(!errors.is_empty());
            for error in errors {
                let _ = error.to_string();
            }
        }
    }
}
