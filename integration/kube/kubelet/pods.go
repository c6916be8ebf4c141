package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"path/filepath"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

type kubelet struct {
	node, dir string
	client    kubernetes.Interface
	sessions  sessions

	mu   sync.Mutex
	pods map[string]*pod // by namespace/name
}

type pod struct {
	uid  types.UID
	dir  string
	spec corev1.PodSpec

	mu         sync.Mutex
	containers map[string]*process
}

// watch runs what is bound to the node, for as long as the program lives.
func (k *kubelet) watch(ctx context.Context) {
	source := cache.NewListWatchFromClient(k.client.CoreV1().RESTClient(), "pods", "", fields.OneTermEqualSelector("spec.nodeName", k.node))
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source, ObjectType: &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { k.sync(ctx, o.(*corev1.Pod)) },
			UpdateFunc: func(_, o any) { k.sync(ctx, o.(*corev1.Pod)) },
			DeleteFunc: func(o any) {
				if p, ok := o.(*corev1.Pod); ok {
					k.forget(p)
				}
			},
		},
	})
	controller.RunWithContext(ctx)
}

func (k *kubelet) find(namespace, name, container string) *process {
	k.mu.Lock()
	p := k.pods[namespace+"/"+name]
	k.mu.Unlock()
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.containers[container]
}

func (k *kubelet) sync(ctx context.Context, o *corev1.Pod) {
	if o.DeletionTimestamp != nil {
		k.forget(o)
		zero := int64(0)
		err := k.client.CoreV1().Pods(o.Namespace).Delete(ctx, o.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &o.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			log.Printf("deleting pod %s/%s: %v", o.Namespace, o.Name, err)
		}
		return
	}
	id := o.Namespace + "/" + o.Name
	k.mu.Lock()
	p := k.pods[id]
	if p == nil || p.uid != o.UID {
		p = &pod{uid: o.UID, dir: filepath.Join(k.dir, string(o.UID)), containers: map[string]*process{}}
		k.pods[id] = p
	}
	k.mu.Unlock()
	if p.start(&k.sessions, o, func() { k.report(ctx, o, p) }) {
		k.report(ctx, o, p)
	}
}

// start starts the containers that don't run yet, and says whether there were any. It calls ended after each one's end.
func (p *pod) start(s *sessions, o *corev1.Pod, ended func()) (started bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spec = o.Spec
	all := append([]corev1.Container{}, o.Spec.Containers...)
	for _, e := range o.Spec.EphemeralContainers {
		all = append(all, corev1.Container(e.EphemeralContainerCommon))
	}
	for _, c := range all {
		if p.containers[c.Name] != nil {
			continue
		}
		if err := os.MkdirAll(p.dir, 0o755); err != nil {
			log.Print(err)
			continue
		}
		argv := append(append([]string{}, c.Command...), c.Args...)
		if len(argv) == 0 {
			argv = []string{"sleep", "infinity"}
		}
		env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + p.dir, "HOSTNAME=" + o.Name}
		for _, e := range c.Env {
			env = append(env, e.Name+"="+e.Value)
		}
		p.containers[c.Name] = startContainer(s, argv, p.dir, env, c.Stdin, c.TTY, ended)
		started = true
	}
	return started
}

func (k *kubelet) forget(o *corev1.Pod) {
	id := o.Namespace + "/" + o.Name
	k.mu.Lock()
	p := k.pods[id]
	if p != nil && p.uid == o.UID {
		delete(k.pods, id)
	}
	k.mu.Unlock()
	if p == nil || p.uid != o.UID {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.containers {
		c.kill()
	}
	_ = os.RemoveAll(p.dir)
}

// report writes the pod's status, as a patch, so that two reports never refuse each other.
func (k *kubelet) report(ctx context.Context, o *corev1.Pod, p *pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	status := corev1.PodStatus{
		Phase: corev1.PodSucceeded, HostIP: "127.0.0.1", PodIP: "127.0.0.1", PodIPs: []corev1.PodIP{{IP: "127.0.0.1"}}, StartTime: &o.CreationTimestamp,
	}
	ready := corev1.ConditionTrue
	for _, c := range p.spec.Containers {
		s := p.containers[c.Name].status(c.Name, c.Image)
		switch {
		case s.State.Running != nil:
			status.Phase = corev1.PodRunning
		case s.State.Terminated.ExitCode != 0 && status.Phase != corev1.PodRunning:
			status.Phase = corev1.PodFailed
		}
		if s.State.Running == nil {
			ready = corev1.ConditionFalse
		}
		status.ContainerStatuses = append(status.ContainerStatuses, s)
	}
	for _, c := range p.spec.EphemeralContainers {
		status.EphemeralContainerStatuses = append(status.EphemeralContainerStatuses, p.containers[c.Name].status(c.Name, c.Image))
	}
	for _, t := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		is := corev1.ConditionTrue
		if t == corev1.ContainersReady || t == corev1.PodReady {
			is = ready
		}
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: t, Status: is, LastTransitionTime: metav1.Now()})
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": o.UID}, "status": status})
	if err != nil {
		log.Print(err)
		return
	}
	_, err = k.client.CoreV1().Pods(o.Namespace).Patch(ctx, o.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		log.Printf("reporting pod %s/%s: %v", o.Namespace, o.Name, err)
	}
}
