package boot

// changesOfTwo makes the image two of the image one, as a Containerfile says it.
const changesOfTwo = `
RUN echo two >/usr/share/marker && \
    echo new default >/etc/kedge-e2e.conf && \
    echo brought by two >/etc/brought && \
    rm /usr/share/doc/bash/copyright && \
    sed -i s/=one/=two/ /usr/lib/bootc/kargs.d/10-lab.toml
LABEL org.opencontainers.image.version="two"
`

// defaultOfOne is a file of the image one that nobody edits on the host.
const defaultOfOne = "\nRUN echo default >/etc/kedge-e2e.conf\n"

// checkTwo looks for what the image two has changed.
func (g *guest) checkTwo() {
	g.t.Helper()
	g.want("the new root is booted", "cat /usr/share/marker", "two")
	g.want("the new image's kernel argument replaced the old", "grep -o 'lab.image=[a-z]*' /proc/cmdline", "lab.image=two")
	g.want("arguments of the machine are kept", "grep -c root=LABEL=root /proc/cmdline", "1")
	g.want("a removed file is gone", "ls /usr/share/doc/bash/copyright 2>/dev/null || echo gone", "gone")
	g.want("a new default arrives", "cat /etc/kedge-e2e.conf", "new default")
	g.want("a new file arrives", "cat /etc/brought", "brought by two")
}

// edits are what an administrator leaves on a host, which has to survive whatever
// root comes next.
type edits struct{ large string }

// edit makes changes of every kind in /etc, and data in /var.
func (g *guest) edit() {
	g.t.Helper()
	g.sh(`echo local >/etc/local && echo admin >>/etc/hosts && chmod 600 /etc/hosts && rm /etc/issue.net
		head -c 3000000 /dev/urandom >/etc/large && cp /etc/large /etc/large2
		mkdir -p /var/lib/e2e && echo data >/var/lib/e2e/data`)
}

// editLate changes /etc between staging and shutdown, a large file as well.
func (g *guest) editLate() edits {
	g.t.Helper()
	return edits{g.sh("echo late >/etc/late; echo late >>/etc/large; cat /etc/large /etc/large2 | sha256sum")}
}

func (e edits) check(g *guest) {
	g.t.Helper()
	g.want("a local file survives", "cat /etc/local", "local")
	g.want("an edit survives", "tail -n 1 /etc/hosts", "admin")
	g.want("a changed mode survives", "stat -c %a /etc/hosts", "600")
	g.want("a local removal survives", "ls /etc/issue.net 2>/dev/null || echo gone", "gone")
	g.want("an edit after staging survives", "cat /etc/late", "late")
	g.want("large files survive", "cat /etc/large /etc/large2 | sha256sum", e.large)
	g.want("/var survives", "cat /var/lib/e2e/data", "data")
}
