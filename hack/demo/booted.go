package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
)

// booted shows the verbs in a virtual machine. QEMU emulates the processor, so
// a boot takes a minute; on real machines it does not.
func (d *demo) booted(ctx context.Context) error {
	d.step("Install os:one on a disk")
	disk, err := lab.NewDisk(ctx, filepath.Join(d.Dir, "disk.img"), "ext4", "root", 6<<30)
	if err != nil {
		return err
	}
	err = disk.With(ctx, func(root string) error {
		return d.kedge(ctx, "install", "to-filesystem", "--image", d.Registry.Repo("os:one"),
			"--target-image", d.Registry.GuestRepo("os:one"), "--bootloader", "none",
			"--karg", "root=LABEL=root", "--karg", "rw", "--karg", "console=ttyS0", root)
	})
	if err != nil {
		return err
	}
	cache, err := lab.CacheDir()
	if err != nil {
		return err
	}
	consoles := filepath.Join(cache, "consoles/demo") // kept, for a boot that fails
	if err := errors.Join(os.RemoveAll(consoles), os.MkdirAll(consoles, 0o755)); err != nil {
		return err
	}
	m := &lab.Machine{Disk: disk, Dir: consoles}
	var g *lab.Guest
	defer func() {
		if g != nil {
			g.Kill()
		}
	}()
	boots := []struct {
		say    string
		script []string
	}{
		{"Boot it", []string{
			"kedge status", "cat /usr/share/marker",
			"echo my setting >/etc/my.conf; echo my data >/var/lib/my.data",
			"kedge switch " + d.Registry.GuestRepo("os:two"), "kedge status",
		}},
		{"Reboot into os:two", []string{
			"cat /usr/share/marker /etc/motd", "cat /etc/my.conf /var/lib/my.data",
			"kedge status", "kedge rollback",
		}},
		{"Reboot into the old root", []string{"cat /usr/share/marker", "kedge status", "kedge history"}},
	}
	for i, b := range boots {
		d.step(b.say + " (a minute; the processor is emulated)")
		if g, err = m.Boot(ctx); err != nil {
			return err
		}
		if _, err := g.WaitBooted(10 * time.Minute); err != nil {
			return err
		}
		for _, s := range b.script {
			fmt.Printf("guest# %s\n", s)
			out, err := g.Run(s, 10*time.Minute)
			fmt.Print(indent(out))
			if err != nil {
				return err
			}
		}
		verb := "reboot"
		if i == len(boots)-1 {
			verb = "poweroff"
		}
		if err := g.Shutdown(verb, 5*time.Minute); err != nil {
			return err
		}
	}
	return nil
}
