/// A keyword of the language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyword {
    /// As it may be written, in upper case.
    pub name: &'static str,
    /// As `fmt` writes it: an alias has another one here.
    pub canonical: &'static str,
    /// For who wrote it without arguments.
    pub(crate) example: &'static str,
}

const fn word(name: &'static str, example: &'static str) -> Keyword {
    Keyword { name, canonical: name, example }
}

const fn alias(name: &'static str, of: &'static str, example: &'static str) -> Keyword {
    Keyword { name, canonical: of, example }
}

/// All keywords, in the order in which they are told.
pub const KEYWORDS: &[Keyword] = &[
    word("FROM", "FROM debian:bookworm"),
    word("ARG", "ARG VERSION=1.0"),
    word("COPY", "COPY hello /hello"),
    word("ADD", "ADD site.tar.gz /srv/"),
    word("RUN", "RUN make install"),
    word("INSTALL", "INSTALL ca-certificates curl"),
    word("ENV", "ENV LOG=info"),
    word("WORKDIR", "WORKDIR /app"),
    word("USER", "USER 1000:1000"),
    word("EXPOSE", "EXPOSE 8080"),
    word("VOLUME", "VOLUME /data"),
    word("ENTRYPOINT", "ENTRYPOINT [\"/hello\", \"--port\", \"8080\"]"),
    word("CMD", "CMD [\"--port\", \"8080\"]"),
    word("LABEL", "LABEL team=web"),
    word("HEALTHCHECK", "HEALTHCHECK --interval=10s CMD [\"/hello\", \"--check\"]"),
    word("STOPSIGNAL", "STOPSIGNAL SIGINT"),
    word("NAME", "NAME hello"),
    word("DESCRIPTION", "DESCRIPTION Greets whoever asks"),
    word("MODEL", "MODEL llama-3.1-8b"),
    word("VCPU", "VCPU 2"),
    alias("CPU", "VCPU", "CPU 2"),
    alias("CORES", "VCPU", "CORES 2"),
    word("MEMORY", "MEMORY 512M"),
    alias("MEM", "MEMORY", "MEM 512M"),
    alias("MBS", "MEMORY", "MBS 512"),
    word("DISK", "DISK 2G"),
    alias("STORAGE", "DISK", "STORAGE 2G"),
    word("GPU", "GPU 1"),
    word("REPLICAS", "REPLICAS 3"),
    word("RESTART", "RESTART on-failure"),
];

/// What people bring along from Dockerfiles, and what to write instead.
pub(crate) const FOREIGN: &[(&str, &str)] = &[
    ("SHELL", "the shell is `/bin/sh -c`; for another one write `RUN [\"/bin/bash\", \"-c\", \"...\"]`"),
    ("ONBUILD", "write the instruction into the Formfile that it is meant for"),
    ("MAINTAINER", "write `LABEL maintainer=...`"),
    ("PORT", "write `EXPOSE`"),
    ("IMPORT", "write `FROM`"),
];

/// The keyword that `text` is, in whatever case.
pub(crate) fn find(text: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name.eq_ignore_ascii_case(text))
}

/// The candidate that `text` was probably meant to be.
pub(crate) fn near<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    // A keyword is short; measuring a long word against each would cost its length squared.
    let text = shortened(text);
    let measured = candidates.map(|known| (strsim::osa_distance(known, text), known));
    measured.min().filter(|&(distance, known)| distance <= 2 && distance < known.len()).map(|(_, known)| known)
}

pub(crate) fn shortened(text: &str) -> &str {
    text.char_indices().nth(32).and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}
