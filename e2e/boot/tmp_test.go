package boot
import ("testing";"os";"path/filepath";"fmt";"time";"github.com/kedge-os/kedge/internal/lab")
func TestTmp(t *testing.T){
 layout:=lab.BaseImage(t)
 cache,_:=lab.CacheDir()
 dir,_:=os.MkdirTemp(cache,"e2e-")
 w:=&world{dir:dir,kedge:filepath.Join(dir,"kedge"),conf:filepath.Join(dir,"registries.conf")}
 os.WriteFile(w.kedge,[]byte("#!/bin/sh\necho fake\n"),0o755)
 var err error
 b:=time.Now()
 w.registry,err=lab.StartRegistry(filepath.Join(dir,"registry"),false); if err!=nil{t.Fatal(err)}
 defer func(){ if err:=w.close();err!=nil{t.Error(err)}}()
 if _,err:=w.registry.Push(t.Context(),layout,lab.TagAgent,"base","latest");err!=nil{t.Fatal(err)}
 os.WriteFile(w.conf,[]byte(fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n",w.registry.Addr)),0o644)
 w.podman,err=lab.NewPodman(filepath.Join(dir,"podman")); if err!=nil{t.Fatal(err)}
 t.Log(time.Since(b))
 if _,err=w.podman.Run(t.Context(),"pull","--quiet","--tls-verify=false",w.registry.Repo("base:latest"));err!=nil{t.Fatal(err)}
 t.Log("pulled",time.Since(b))
 w.buildHostImage(t,"os:one","one")
 t.Log("built",time.Since(b))
 w.build(t,"os:two","FROM "+w.registry.Repo("os:one")+"\nRUN echo two >/usr/share/marker\n",nil)
 t.Log("built",time.Since(b))
 disk:=w.newDisk(t,"ext4")
 if err:=disk.With(t.Context(),func(root string)error{return w.installWithOSTree(t,root)});err!=nil{t.Fatal(err)}
 t.Log("installed",time.Since(b))
 m:=w.machine(t,disk)
 g:=start(t,m)
 t.Log(g.sh("ostree admin status; cat /etc/containers/registries.conf.d/lab.conf; ls -la /var/; curl -sS http://"+w.registry.GuestRepo("x")[:len(w.registry.GuestRepo("x"))-2]+"/v2/_catalog; /var/kedge-brought; echo x > /etc/x; systemctl --failed"))
 g=g.reboot(m)
 t.Log(g.sh("cat /etc/x"))
}
