//! The smallest useful workload: an HTTP/1.1 server that greets with the name of its host.
//!
//! `PORT` (8080) is its only setting. It needs nothing but the kernel, so its image is this one file.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// The longest request head that is read, in bytes.
const MAX_HEAD: usize = 8192;
/// How long a client may take between two bytes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections served at once; the rest waits in the kernel's queue.
const WORKERS: usize = 16;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let port = match std::env::var("PORT") {
        Ok(text) => text.parse().map_err(|_| io::Error::other(format!("PORT={text:?} is no port; give 1 to 65535")))?,
        Err(_) => 8080,
    };
    // [::] takes IPv4 too, unless the kernel has no IPv6.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    let greeting: Arc<str> = format!("Hello from {}!\n", hostname()).into();
    log(format_args!("listening on {}", listener.local_addr()?));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    // A client that is gone before it is served is no reason to stop serving.
                    if let Ok((stream, _)) = listener.accept() {
                        let _ = answer(stream, &greeting);
                    }
                }
            });
        }
    });
    Ok(())
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "somewhere".into() } else { name.trim().into() }
}

fn answer(mut stream: TcpStream, greeting: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let response = match read_head(&mut stream)? {
        Some(head) => respond(&head, greeting),
        None => response("431 Request Header Fields Too Large", "The request is too long.\n", true),
    };
    stream.write_all(response.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// Reads up to the empty line that ends a request's head; `None` if it does not come in time.
fn read_head(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut piece)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(piece.get(..length).unwrap_or_default());
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

fn respond(head: &[u8], greeting: &str) -> String {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some(b"HTTP/1.1" | b"HTTP/1.0"), None) => match (method, target) {
            (b"GET", b"/") => response("200 OK", greeting, true),
            (b"HEAD", b"/") => response("200 OK", greeting, false),
            (b"GET" | b"HEAD", _) => response("404 Not Found", "There is only /.\n", method == b"GET"),
            _ => response("405 Method Not Allowed\r\nAllow: GET, HEAD", "Only GET and HEAD.\n", true),
        },
        _ => response("400 Bad Request", "That is not HTTP/1.1.\n", true),
    }
}

/// Announces `body`, and sends it too if `with_body`.
fn response(status: &str, body: &str, with_body: bool) -> String {
    let length = body.len();
    let sent = if with_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{sent}"
    )
}

fn log(message: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "hello: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> String {
        respond(head.as_bytes(), "Hello!\n").lines().next().unwrap().to_owned()
    }

    #[test]
    fn the_root_greets_and_nothing_else_is_there() {
        assert!(respond(b"GET / HTTP/1.1\r\n\r\n", "Hello!\n").ends_with("\r\n\r\nHello!\n"));
        assert_eq!(status("GET /x HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
        assert_eq!(status("POST / HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
    }

    #[test]
    fn head_has_the_length_of_get_and_no_body() {
        let response = respond(b"HEAD / HTTP/1.1\r\n\r\n", "Hello!\n");
        assert!(response.contains("Content-Length: 7\r\n") && response.ends_with("\r\n\r\n"));
    }

    #[test]
    fn what_is_not_http_is_told_so() {
        for head in ["", "GET\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n", "GET / HTTP/9\r\n\r\n", "\0\0\r\n\r\n"] {
            assert_eq!(status(head), "HTTP/1.1 400 Bad Request", "{head:?}");
        }
    }

    #[test]
    fn a_head_without_end_is_cut_off() {
        assert_eq!(read_head(&mut io::repeat(b'a')).unwrap(), None);
    }
}
