package host

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/pkg/fault"
)

// dpkgStatus is a database with packages given as NAME=VERSION.
func dpkgStatus(packages ...string) smallimage.Entry {
	var b strings.Builder
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		fmt.Fprintf(&b, "Package: %s\nStatus: install ok installed\nArchitecture: all\nVersion: %s\nDescription: %s\n\n", name, version, strings.Repeat("x", 100))
	}
	return smallimage.File("usr/lib/sysimage/dpkg/status", 0, b.String())
}

func TestDiffPackages(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		link := smallimage.Symlink("var/lib/dpkg", "../../usr/lib/sysimage/dpkg")
		old, _ := w.push("os", 1, dpkgStatus("bash=5.2-1", "gone=1", "libc6=2.41-9", "steady=1"), link)
		w.install(old)
		w.push("os", 2, dpkgStatus("bash=5.2-1~rc1", "come=2:1", "libc6=2.41-12", "steady=1"), link)
		want := []v1.PackageDiff{
			{Name: "bash", Arch: "all", Change: "downgraded", From: "5.2-1", To: "5.2-1~rc1"},
			{Name: "come", Arch: "all", Change: "added", To: "2:1"},
			{Name: "gone", Arch: "all", Change: "removed", From: "1"},
			{Name: "libc6", Arch: "all", Change: "upgraded", From: "2.41-9", To: "2.41-12"},
		}
		check := func(when string, got []v1.PackageDiff, err error) {
			t.Helper()
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%s: %v: %s", when, err, diff)
			}
		}
		h := w.open()
		r, err := h.CheckUpgrade(ctx, "")
		if err != nil || !r.Changed || r.PackageChanges != nil {
			t.Errorf("a check of an image that is not here: %+v, %v", r, err)
		}
		p, err := h.Plan(ctx, PlanOptions{Inspect: true})
		must(t, err)
		check("plan --inspect", p.PackageChanges, nil)
		h.Close()

		w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
		h = w.open()
		got, err := h.DiffPackages(ctx, "1", "0")
		check("deployments", got, err)
		got, err = h.DiffPackages(ctx, "", "")
		check("what is named by nothing", got, err)
		// The newer image is what the next boot takes, and a status of what runs.
		s, err := ReadStatusPackages(ctx, w.config())
		must(t, err)
		check("status", s.Status.OtherDeployments[0].Kedge.PackageChanges, nil)
		s, err = ReadStatus(ctx, w.config())
		must(t, err)
		if got := s.Status.OtherDeployments[0].Kedge.PackageChanges; got != nil {
			t.Errorf("status compares packages unasked: %+v", got)
		}
		// The newer image is here, and not what the next boot takes.
		h.Close()
		w.do(func(h *Host) (*v1.Result, error) { return h.Deploy(ctx, "1") })
		h = w.open()
		r, err = h.CheckUpgrade(ctx, "")
		must(t, err)
		check("upgrade --check of an image that is here", r.PackageChanges, nil)
		got, err = h.DiffPackages(ctx, "0", "0")
		if err != nil || len(got) != 0 {
			t.Errorf("a deployment with itself: %+v, %v", got, err)
		}
		h.Close()
	})
}

func TestDiffPackagesRefuses(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		with, _ := w.push("with", 1, dpkgStatus("bash=1"))
		without, _ := w.push("without", 2)
		damaged, _ := w.push("damaged", 3, smallimage.File("usr/share/rpm/rpmdb.sqlite", 0, strings.Repeat("no database", 1000)))
		w.install(with)
		w.switchTo(without)
		h := w.open()
		_, err := h.DiffPackages(ctx, "0", "1")
		wantKind(t, err, fault.NotFound, "no package database")
		h.Close()
		w.switchTo(damaged)
		h = w.open()
		defer h.Close()
		_, err = h.DiffPackages(ctx, "0", "0")
		wantKind(t, err, fault.Corrupt, "rpmdb.sqlite")
	})
}
