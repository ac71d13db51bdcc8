//! Makes a certificate authority in a folder of its own with `openssl`: certificates are valid from and until the times
//! that a test says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the flags of a process name.
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
    /// The flags of a command line.
    pub fn flags(&self) -> [&str; 6] {
        let Self { certificate, key, authority } = self;
        ["--tls-cert", text(certificate), "--tls-key", text(key), "--tls-ca", text(authority)]
    }

    /// Puts another identity into these files.
    pub fn replace(&self, by: &Self) {
        for (from, to) in [(&by.certificate, &self.certificate), (&by.key, &self.key), (&by.authority, &self.authority)]
        {
            // As a tool that renews certificates does: nobody reads half of a file.
            let beside = to.with_extension("new");
            fs::copy(from, &beside).expect("the room is ours");
            fs::rename(&beside, to).expect("the room is ours");
        }
    }
}

/// See the module's head.
pub struct Authority(TempDir);

impl Authority {
    /// One that is valid for days.
    pub fn new() -> Self {
        let now = SystemTime::now();
        Self::lasting(now - DAY, now + 30 * DAY)
    }

    /// One that is valid from when to when.
    pub fn lasting(from: SystemTime, until: SystemTime) -> Self {
        let authority = Self(tempfile::tempdir().expect("there is a temporary folder"));
        let folder = text(authority.0.path()).to_owned();
        let settings = format!(
            "[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/index\nnew_certs_dir={folder}\nrand_serial=yes\n\
             unique_subject=no\ndefault_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n\
             [authority]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n\
             [process]\nsubjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        );
        fs::write(authority.path("settings"), settings).expect("the room is ours");
        fs::write(authority.path("index"), "").expect("the room is ours");
        authority.sign("authority", "ca", &["-selfsign"], "authority", from, until);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A process's certificate, for listening at 127.0.0.1 and for calling, that is valid for days.
    pub fn certify(&self, name: &str) -> Identity {
        let now = SystemTime::now();
        self.certify_for(name, now - DAY, now + 30 * DAY)
    }

    /// The same, valid from when to when.
    pub fn certify_for(&self, name: &str, from: SystemTime, until: SystemTime) -> Identity {
        let ca = self.path("ca.pem");
        let key = self.sign("process", name, &["-cert", text(&ca)], name, from, until);
        // Its own: to replace what a process trusts changes nothing for others.
        let authority = self.path(&format!("{name}-ca.pem"));
        fs::copy(&ca, &authority).expect("the room is ours");
        Identity { certificate: self.path(&format!("{name}.pem")), key, authority }
    }

    /// Makes a key and a certificate of this kind; gives the key.
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
        let subject = format!("/CN={subject}");
        let files = ["-subj", &subject, "-keyout", text(&key), "-out", text(&request)];
        run("openssl", &[&["req"], &NEW_KEY[..], &files].concat());
        let (ca_key, from, until) = (self.path("ca.key"), date(from), date(until));
        let asked = ["ca", "-batch", "-notext", "-config", text(&settings), "-extensions", kind, "-in", text(&request)];
        let given = ["-keyfile", text(&ca_key), "-startdate", &from, "-enddate", &until, "-out", text(&certificate)];
        run("openssl", &[&asked[..], issuer, &given].concat());
        key
    }
}

/// As `openssl` takes it.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).expect("it is later").as_secs();
    run("date", &["-u", "-d", &format!("@{seconds}"), "+%Y%m%d%H%M%SZ"]).trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
