//! Makes a certificate authority with `openssl`, in a temporary directory: tests choose the validity of certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The files of the TLS flags of a process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The certificate of the authority.
    pub authority: PathBuf,
}

impl Identity {
    /// Returns the flags of a command line.
    pub fn flags(&self) -> [&str; 6] {
        let Self { certificate, key, authority } = self;
        ["--tls-cert", text(certificate), "--tls-key", text(key), "--tls-ca", text(authority)]
    }

    /// Replaces the content of these files by another identity.
    pub fn replace(&self, by: &Self) {
        for (from, to) in [(&by.certificate, &self.certificate), (&by.key, &self.key), (&by.authority, &self.authority)]
        {
            // As a tool that renews certificates does, so that no reader sees half of a file.
            let beside = to.with_extension("new");
            fs::copy(from, &beside).expect("the directory is writable");
            fs::rename(&beside, to).expect("the directory is writable");
        }
    }
}

/// A certificate authority.
pub struct Authority(TempDir);

impl Authority {
    /// Creates an authority that is valid for 30 days.
    #[must_use]
    pub fn new() -> Self {
        let now = SystemTime::now();
        Self::lasting(now - DAY, now + 30 * DAY)
    }

    /// Creates an authority that is valid from `from` until `until`.
    pub fn lasting(from: SystemTime, until: SystemTime) -> Self {
        let authority = Self(tempfile::tempdir().expect("temporary directories can be created"));
        let folder = text(authority.0.path()).to_owned();
        let settings = format!(
            "[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/index\nnew_certs_dir={folder}\nrand_serial=yes\n\
             unique_subject=no\ndefault_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n\
             [authority]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n\
             [process]\nsubjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        );
        fs::write(authority.path("settings"), settings).expect("the directory is writable");
        fs::write(authority.path("index"), "").expect("the directory is writable");
        authority.sign("authority", "ca", &["-selfsign"], "/CN=authority", from, until);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a certificate of a process, for listening at 127.0.0.1 and for calling, that is valid for days.
    pub fn certify(&self, name: &str) -> Identity {
        let now = SystemTime::now();
        self.certify_for(name, now - DAY, now + 30 * DAY)
    }

    /// As [`Authority::certify`], with this subject (as `/CN=x`) and these alternative names (as `IP:127.0.0.1,DNS:x`).
    pub fn certify_as(&self, name: &str, subject: &str, alternatives: &str) -> Identity {
        let (now, section) = (SystemTime::now(), format!("process-{name}"));
        let usage = "extendedKeyUsage=serverAuth,clientAuth";
        let more = format!("[{section}]\nsubjectAltName={alternatives}\n{usage}\n");
        let settings = self.path("settings");
        let before = fs::read_to_string(&settings).expect("it was written");
        fs::write(&settings, format!("{before}{more}")).expect("the directory is writable");
        let key = self.certificate(&section, name, subject, now - DAY, now + 30 * DAY);
        fs::write(&settings, before).expect("the directory is writable");
        self.identity(name, key)
    }

    /// As [`Authority::certify`], valid from `from` until `until`.
    pub fn certify_for(&self, name: &str, from: SystemTime, until: SystemTime) -> Identity {
        let key = self.certificate("process", name, &format!("/CN={name}"), from, until);
        self.identity(name, key)
    }

    /// Makes a key and a certificate of a process; returns the key.
    fn certificate(&self, kind: &str, name: &str, subject: &str, from: SystemTime, until: SystemTime) -> PathBuf {
        let ca = self.path("ca.pem");
        self.sign(kind, name, &["-cert", text(&ca)], subject, from, until)
    }

    fn identity(&self, name: &str, key: PathBuf) -> Identity {
        // A copy for each process: replacing it does not change what other processes trust.
        let authority = self.path(&format!("{name}-ca.pem"));
        fs::copy(self.path("ca.pem"), &authority).expect("the directory is writable");
        Identity { certificate: self.path(&format!("{name}.pem")), key, authority }
    }

    /// Makes a key and a certificate of this kind; returns the key.
    fn sign(
        &self,
        kind: &str,
        name: &str,
        issuer: &[&str],
        subject: &str,
        from: SystemTime,
        until: SystemTime,
    ) -> PathBuf {
        let (key, request) = (self.path(&format!("{name}.key")), self.path("request"));
        let (certificate, settings) = (self.path(&format!("{name}.pem")), self.path("settings"));
        let files = ["-subj", subject, "-keyout", text(&key), "-out", text(&request)];
        run("openssl", &[&["req"], &NEW_KEY[..], &files].concat());
        let (ca_key, from, until) = (self.path("ca.key"), date(from), date(until));
        let asked = ["ca", "-batch", "-notext", "-config", text(&settings), "-extensions", kind, "-in", text(&request)];
        let given = ["-keyfile", text(&ca_key), "-startdate", &from, "-enddate", &until, "-out", text(&certificate)];
        run("openssl", &[&asked[..], issuer, &given].concat());
        key
    }
}

/// Formats a time for `openssl`.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).expect("it is later").as_secs();
    run("date", &["-u", "-d", &format!("@{seconds}"), "+%Y%m%d%H%M%SZ"]).trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
