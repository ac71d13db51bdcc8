//! Holds two key pairs that tests sign orders with: those of the first two tests of RFC 8032, as openssl writes them.

const PRIVATE: [&str; 2] = [
    "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g",
    "MC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7",
];
const PUBLIC: [&str; 2] = [
    "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "MCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=",
];

/// Returns the private key of pair 0 or 1, as PEM.
pub fn private_key(pair: usize) -> String {
    pem("PRIVATE KEY", PRIVATE[pair])
}

/// Returns the public key of pair 0 or 1, as PEM.
pub fn public_key(pair: usize) -> String {
    pem("PUBLIC KEY", PUBLIC[pair])
}

fn pem(kind: &str, body: &str) -> String {
    format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
}
