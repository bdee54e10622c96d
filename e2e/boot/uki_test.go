package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/host"
)

// TestUnifiedKernelImage is the story of a host whose kernel, initramfs and kernel
// arguments are one file that belongs to its image: OVMF, systemd-boot, and stubs
// of systemd that ukify has filled.
func TestUnifiedKernelImage(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "three boots by the firmware, ten minutes")
	w, _ := sealedWorld(t)
	lab.Need(t, "bwrap")
	w.buildHostImage(t, "os:uki-tree", "one")
	w.addUKI(t, "os:uki-tree", "os:uki-one", "lab.image=one")
	w.build(t, "os:uki-tree-two", "FROM "+w.Registry.Repo("os:uki-tree")+`
RUN echo two >/usr/share/marker && sed -i s/=one/=two/ /usr/lib/bootc/kargs.d/10-lab.toml
`)
	w.addUKI(t, "os:uki-tree-two", "os:uki-two", "lab.image=two lab.more=1")
	disk := w.firmwareDisk(t, "ext4 -O verity", func(cfg host.Config) error {
		return w.installFirmware(t, cfg, "systemd-boot", "os:uki-one", "composefs")
	})
	checkESP(t, disk, 1, false)

	m := w.machine(t, disk)
	m.Firmware, m.BootTimeout = true, scriptTimeout
	g := start(t, m)
	check := func(g *guest, marker string) {
		t.Helper()
		g.checkLoaded(marker, "composefs", `"name": "systemd-boot"`, `"bootType": "Uki"`)
		g.want("the stub of systemd started the kernel", "cat /sys/firmware/efi/efivars/StubInfo-* | tr -dc '[:alpha:]-' | grep -o systemd-stub", "systemd-stub")
		g.want("the whole command line is the image's", "tr ' ' '\\n' </proc/cmdline | grep -c lab.image", "1")
		g.want("kedge finds nothing wrong", "kedge fsck >/dev/null && echo sound", "sound")
	}
	check(g, "one")
	for _, verb := range []string{"kargs --append lab.mine=1", "kargs --delete lab.image=one", "pkg add hello"} {
		if code := g.exitCode("kedge " + verb); code != 4 {
			t.Errorf("kedge %s exits %d, want 4", verb, code)
		}
	}
	g = g.thereAndBack(m, w.Registry.GuestRepo("os:uki-two"), func(g *guest, marker string) {
		t.Helper()
		check(g, marker)
		more := map[string]string{"one": "0", "two": "1"}
		g.want("an argument of the second one alone", "grep -c lab.more=1 /proc/cmdline || true", more[marker])
	})
	g.kedge("cleanup --rollback")
	if err := g.Shutdown("poweroff", 3*time.Minute); err != nil {
		t.Fatal(err)
	}
	checkESP(t, disk, 1, false)
	dir, err := disk.ESP(t.Context(), t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "EFI/Linux/bootc")); err != nil || len(left) != 1 {
		t.Errorf("there are the unified kernel images %v, %v; want the one of the root that stays", left, err)
	}
}

// addUKI builds ref: the image tree with a unified kernel image of its own kernel
// and initramfs, whose arguments are kargs beside those of every host of the lab.
func (w *world) addUKI(t *testing.T, tree, ref, kargs string) {
	t.Helper()
	w.withUKI(t, tree, ref, w.makeUKI(t, tree, kargs))
}

// makeUKI is the unified kernel image of addUKI.
func (w *world) makeUKI(t *testing.T, tree, kargs string) (file string) {
	t.Helper()
	dir := t.TempDir()
	root, err := w.Run(t.Context(), "container", "digest", "docker://"+w.Registry.Repo(tree))
	if err != nil {
		t.Fatal(err)
	}
	id, err := w.Podman.Run(t.Context(), "create", w.Registry.Repo(tree))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"modules", "os-release"} {
		if _, err := w.Podman.Run(t.Context(), "cp", id+":/usr/lib/"+name, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Podman.Run(t.Context(), "rm", id); err != nil {
		t.Fatal(err)
	}
	kernels, err := filepath.Glob(filepath.Join(dir, "modules/*/vmlinuz"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("%s has the kernels %v", tree, kernels)
	}
	cmdline := []string{"composefs=?" + strings.TrimSpace(root), lab.EmulatorOptions + ",apparmor"}
	made := lab.UKI{
		Kernel: kernels[0], Initramfs: filepath.Join(filepath.Dir(kernels[0]), "initramfs.img"), OSRelease: filepath.Join(dir, "os-release"),
		Cmdline: strings.Join(append(append(cmdline, rootArgs...), kargs), " "),
	}
	file = filepath.Join(dir, "os.efi")
	if err := made.Make(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	return file
}

// withUKI builds ref: the image tree with that unified kernel image.
func (w *world) withUKI(t *testing.T, tree, ref, file string) {
	t.Helper()
	program, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Build(t.Context(), ref, "FROM "+w.Registry.Repo(tree)+"\nCOPY os.efi /boot/EFI/Linux/os.efi\n", map[string]string{"os.efi": string(program)}); err != nil {
		t.Fatal(err)
	}
}
