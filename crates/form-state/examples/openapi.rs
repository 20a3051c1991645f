//! Prints the API's document; `cargo xtask openapi` keeps it in docs/.
#![allow(clippy::print_stdout)]

fn main() {
    print!("{}", form_state::openapi_yaml());
}
