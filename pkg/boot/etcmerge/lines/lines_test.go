package lines

import (
	"slices"
	"strings"
	"testing"
)

// text puts lines together; "" is an empty file.
func text(lines ...string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

const (
	root = "root:x:0:0:root:/root:/bin/sh"
	svc  = "svc:x:990:990::/:/usr/sbin/nologin"
	ann  = "ann:x:1000:1000:Ann:/home/ann:/bin/bash"
)

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		name, file               string
		base, local, image, want string
		conflicts                string // keys
		refused                  string
	}{
		{
			name: "a user on each side", file: "passwd",
			base: text(root), local: text(root, ann), image: text(root, svc),
			want: text(root, svc, ann),
		},
		{
			name: "the machine's order stays", file: "passwd",
			base: text(root, svc), local: text(svc, ann, root), image: text(root, svc, "new:x:991:991::/:/x"),
			want: text(svc, "new:x:991:991::/:/x", ann, root),
		},
		{
			name: "one name with two uids", file: "passwd",
			base: text(root), local: text(root, "svc:x:985:985::/:/x"), image: text(root, svc),
			want: text(root, "svc:x:985:985::/:/x"), conflicts: "svc",
		},
		{
			name: "one uid with two names", file: "passwd",
			base: text(root), local: text(root, "own:x:990:1000::/:/x"), image: text(root, svc),
			want: text(root, "own:x:990:1000::/:/x"), conflicts: "svc",
		},
		{
			name: "the image renames a user", file: "passwd",
			base: text(root, svc), local: text(root, svc, ann), image: text(root, "svc2:x:990:990::/:/x"),
			want: text(root, "svc2:x:990:990::/:/x", ann),
		},
		{
			name: "the image's new uid is the machine's", file: "passwd",
			base: text(root, svc), local: text(root, svc, "own:x:991:1::/:/x"), image: text(root, "svc:x:991:991::/:/x"),
			want: text(root, svc, "own:x:991:1::/:/x"), conflicts: "svc",
		},
		{
			name: "the image changes and drops what the machine left alone", file: "passwd",
			base: text(root, svc, "gone:x:5:5::/:/x"), local: text(root, svc, "gone:x:5:5::/:/x", ann), image: text("root:x:0:0:root:/root:/bin/zsh", svc),
			want: text("root:x:0:0:root:/root:/bin/zsh", svc, ann),
		},
		{
			name: "changed here, dropped there", file: "passwd",
			base: text(root, svc), local: text(root, "svc:x:990:990:mine:/:/x"), image: text(root),
			want: text(root, "svc:x:990:990:mine:/:/x"), conflicts: "svc",
		},
		{
			name: "removed here, changed there", file: "passwd",
			base: text(root, svc), local: text(root, ann), image: text(root, "svc:x:990:990:new:/:/x"),
			want: text(root, ann), conflicts: "svc",
		},
		{
			name: "removed here, the same there", file: "passwd",
			base: text(root, svc), local: text(root), image: text(root, svc, "n:x:7:7::/:/x"),
			want: text(root, "n:x:7:7::/:/x"),
		},
		{
			name: "members are a set", file: "group",
			base: text("wheel:x:10:old,both"), local: text("wheel:x:10:old,both,ann"), image: text("wheel:x:10:both,svc"),
			want: text("wheel:x:10:both,ann,svc"),
		},
		{
			name: "a group added on both sides", file: "group",
			base: "", local: text("docker:x:980:ann"), image: text("docker:x:980:svc"),
			want: text("docker:x:980:ann,svc"),
		},
		{
			name: "a group with two gids", file: "group",
			base: "", local: text("docker:x:980:ann"), image: text("docker:x:981:svc"),
			want: text("docker:x:980:ann"), conflicts: "docker",
		},
		{
			name: "administrators and members", file: "gshadow",
			base: text("wheel:::"), local: text("wheel::ann:ann"), image: text("wheel::svc:svc"),
			want: text("wheel::ann,svc:ann,svc"),
		},
		{
			name: "a password of the machine's", file: "shadow",
			base: text("root:*:1::::::", "svc:!:1::::::"), local: text("root:$6$x:2::::::", "svc:!:1::::::"), image: text("root:*:1::::::", "svc:!*:9::::::", "n:!:1::::::"),
			want: text("root:$6$x:2::::::", "svc:!*:9::::::", "n:!:1::::::"),
		},
		{
			name: "ranges", file: "subuid",
			base: "", local: text("ann:100000:65536"), image: text("svc:165536:65536", "bad:150000:10"),
			want: text("ann:100000:65536", "svc:165536:65536"), conflicts: "bad:150000:10",
		},
		{
			name: "file systems", file: "fstab",
			base:  text("# made by the installer", "LABEL=root / ext4 defaults 0 1"),
			local: text("# made by the installer", "LABEL=root / ext4 defaults 0 1", "", "# data", "LABEL=data /data xfs nofail"),
			image: text("# made by the image", "LABEL=root / ext4 rw 0 1", "tmpfs /tmp tmpfs defaults 0 0"),
			want:  text("# made by the installer", "LABEL=root / ext4 rw 0 1", "tmpfs /tmp tmpfs defaults 0 0", "", "# data", "LABEL=data /data xfs nofail"),
		},
		{
			name: "a mount point twice over", file: "fstab",
			base: text("a /m ext4"), local: text("b /m ext4"), image: text("c /m ext4", "d none swap sw"),
			want: text("b /m ext4", "d none swap sw"), conflicts: "/m",
		},
		{name: "NIS", file: "passwd", base: text(root), local: text(root, "+::::::"), image: text(root, svc), refused: "the machine's: line 2: an entry of NIS"},
		{name: "fields", file: "passwd", base: text(root), local: text(root, "ann:x:1000"), image: text(root, svc), refused: "the machine's: line 2: 3 fields, not 7"},
		{name: "a number", file: "group", base: "", local: text("a:x:ten:"), image: text("b:x:1:"), refused: `the machine's: line 1: "ten" is not a number`},
		{name: "a name twice", file: "passwd", base: text(root), local: text(root, ann), image: text(root, root), refused: "the image's: line 2: a second entry for root"},
		{name: "no name", file: "shadow", base: text(":*:1::::::"), local: text("a:*:1::::::"), image: text("b:*:1::::::"), refused: "the old image's: line 1: no name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, conflicts, err := For(c.file).Merge([]byte(c.base), []byte(c.local), []byte(c.image))
			if c.refused != "" {
				if err == nil || err.Error() != c.refused {
					t.Errorf("error = %v, want %q", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("merged to:\n%swant:\n%s", got, c.want)
			}
			var keys []string
			for _, x := range conflicts {
				keys = append(keys, x.Key)
				if strings.Contains(x.String(), "$6$") {
					t.Errorf("a password hash is told: %s", x)
				}
			}
			if strings.Join(keys, " ") != c.conflicts {
				t.Errorf("conflicts = %v, want %q", conflicts, c.conflicts)
			}
		})
	}
}

func TestDiff(t *testing.T) {
	got, err := For("passwd").Diff([]byte(text(root, svc)), []byte(text("root:x:0:0:root:/root:/bin/zsh", ann)))
	if err != nil {
		t.Fatal(err)
	}
	want := []Line{{"root", "modified"}, {"ann", "added"}, {"svc", "removed"}}
	if !slices.Equal(got, want) {
		t.Errorf("diff = %v, want %v", got, want)
	}
	if _, err := For("passwd").Diff(nil, []byte("+::::::\n")); err == nil {
		t.Error("lines of NIS were compared")
	}
}
