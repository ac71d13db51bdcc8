//! Runs a ZooKeeper server in the management network, and serves the files of a directory as exports in both networks.

use super::test_cluster::{SOON, wait_until};
use blockhaul_testkit::java;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server process, killed on drop.
pub(crate) struct Server(Child);

impl Server {
    /// Starts ZooKeeper at port 2181 of all addresses of this namespace. Needs the Debian package `zookeeper`.
    pub(crate) fn zookeeper(home: &Path) -> Self {
        fs::create_dir_all(home.join("data")).expect("the directory is writable");
        let text = format!(
            "tickTime=500\nsyncLimit=8\ninitLimit=20\nmaxSessionTimeout=600000\ndataDir={}\nclientPort=2181\n\
             maxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=ruok\n",
            home.join("data").display()
        );
        fs::write(home.join("zoo.cfg"), text).expect("the directory is writable");
        let mut command = Command::new("java");
        java::serve(&mut command, 128, &home.join("zoo.cfg"));
        let server = Self::start(&mut command, home, "zookeeper.log");
        wait_until("ZooKeeper serves", is_serving);
        server
    }

    /// Serves every file of a folder as an export with its name, at port 10809 of all addresses of this namespace.
    pub(crate) fn nbd(folder: &Path, home: &Path) -> Self {
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--port", "10809", "file"]).arg(format!("dir={}", folder.display()));
        let server = Self::start(&mut command, home, "nbdkit.log");
        wait_until("nbdkit serves", || TcpStream::connect("127.0.0.1:10809").is_ok());
        server
    }

    fn start(command: &mut Command, home: &Path, log: &str) -> Self {
        let log = File::create(home.join(log)).expect("the directory is writable");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("there are descriptors")).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("run {:?}: {error}", command.get_program())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_serving() -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:2181")?;
        stream.set_read_timeout(Some(Duration::from_secs(1).min(SOON)))?;
        stream.write_all(b"ruok")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer == "imok")
}
